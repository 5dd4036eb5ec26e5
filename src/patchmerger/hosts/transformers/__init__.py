"""The Vision Transformers of Hugging Face transformers."""

"""timm's Vision Transformers."""

"""What a merger gains in time and memory: measured, beside what FLOPs and a roofline predict."""

"""The Hugging Face Hub in one place: what it refuses, its datasets, and what is kept of them."""

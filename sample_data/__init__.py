"""The demo model, its data and recipe; a package so that the wheel carries the demo."""

"""Training pictures: landscapes that the package draws itself, photos, and random region masks."""

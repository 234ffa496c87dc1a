"""What several transforms need."""

"""What an optimizer remembers."""

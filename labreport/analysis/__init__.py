"""What the sections compute beyond training: shares, mechanisms, costs."""

"""What freshness is worth: recall on later events when histories or weights are synced ever more rarely."""

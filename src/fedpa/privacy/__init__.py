"""What keeps a server from learning more than sums."""

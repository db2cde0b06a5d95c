"""What keeps the project's supply chain in order; not installed."""

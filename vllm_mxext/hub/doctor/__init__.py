"""What keeps models from being downloaded and started: checks that each yield findings with a remedy."""

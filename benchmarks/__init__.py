"""Measurements beside peers: each checks that the answers agree before it looks at the clock."""

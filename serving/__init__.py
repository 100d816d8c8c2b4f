"""What the programs share and a user of the SDK must not carry."""

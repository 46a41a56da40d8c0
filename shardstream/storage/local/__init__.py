"""Files of this machine: reading them whole, and mapping them into memory."""

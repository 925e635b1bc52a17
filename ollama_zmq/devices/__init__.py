"""Where ops are carried out: the device protocol, the reference device, and the registry of devices."""

"""Every op in float64 NumPy, written to be read: what all devices are measured against."""

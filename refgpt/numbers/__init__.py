"""How numbers are stored: dtypes, leaves of a parameter tree, panels, quantisation, checksums, packing."""

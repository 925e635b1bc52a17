"""The two versions a peer must know: the package's and the protocol's."""

VERSION = "0.1.0"
PROTOCOL = 1

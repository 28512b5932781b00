//! What the host lends to a machine: network namespaces, taps, packet filters, DNS.

package tcpstate

// A portSet is a set of ports; the zero value is empty.
type portSet [1 << 16 / 64]uint64

// fill makes ports the only members.
func (s *portSet) fill(ports []uint16) {
	clear(s[:])
	for _, p := range ports {
		s[p/64] |= 1 << (p % 64)
	}
}

func (s *portSet) has(port uint16) bool { return s[port/64]&(1<<(port%64)) != 0 }

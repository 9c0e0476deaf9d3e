package reply

import "strings"

// Slots is how many slots a Redis Cluster has.
const Slots = 16384

// Slot is the slot of a key: CRC16 (XMODEM) of it, or of what stands between the first "{"
// and the next "}" if that is not empty.
func Slot(key string) uint16 {
	if _, after, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(after, "}"); ok && tag != "" {
			key = tag
		}
	}
	// Bit by bit: a key is asked for by hand, so a table would not pay.
	const polynomial = 0x1021
	var crc uint16
	for _, c := range []byte(key) {
		crc ^= uint16(c) << 8
		for range 8 {
			carry := crc&0x8000 != 0
			if crc <<= 1; carry {
				crc ^= polynomial
			}
		}
	}
	return crc % Slots
}

// SlotRange is the slots from First to Last, both included.
type SlotRange struct{ First, Last uint16 }

package resp

// Limits bound what one Read may take in. Each field that is 0 has its default, and
// none is above 1 GiB.
// The defaults let pass what a large cluster answers to what is asked of it here
// (INFO, CLUSTER NODES, SLOTS, SHARDS, and Sentinel's commands).
type Limits struct {
	// Line is the most bytes of a line, which holds a length, a number, a simple
	// string or an error. Redis cuts what it quotes in an error at 128 bytes, and
	// its longest sentence (MISCONF) has some 350: by default 4096.
	Line int
	// Bulk is the most bytes of a bulk string. CLUSTER NODES of 1,000 nodes has some
	// 150 KiB, 200 KiB more if no two neighbouring slots are together: by default
	// 1 MiB.
	Bulk int
	// Elements is the most values in one array, set, push or map, keys and values
	// counted apart. CLUSTER SLOTS has one for each run of neighbouring slots, so
	// 16,384 at the very most: by default 32768.
	Elements int
	// Depth is how many values may be within each other. CLUSTER SHARDS has five
	// (shards, a shard, its nodes, a node, a string): by default 8.
	Depth int
	// Total is the most memory of a value with all that is in it: its bytes on the
	// wire, and ValueSize for each value. A null takes three bytes on the wire and
	// thirty times as many in memory, so that bytes alone would bound little. What
	// Read allocates is at most some four times as much, since a list that grows is
	// copied. By default 8 MiB, which is CLUSTER SLOTS with 4,000 runs of slots on
	// three nodes each. A cluster more scattered than that is better asked for
	// CLUSTER NODES.
	Total int
}

// ValueSize is what a Value costs of Limits.Total beside its bytes.
const ValueSize = 80

// most is above every limit that makes sense, and far enough below the end of an
// int to add to it.
const most = 1 << 30

func (l Limits) withDefaults() Limits {
	def := func(limit *int, by int) {
		if *limit <= 0 {
			*limit = by
		}
		*limit = min(*limit, most)
	}
	def(&l.Line, 4096)
	def(&l.Bulk, 1<<20)
	def(&l.Elements, 32768)
	def(&l.Depth, 8)
	def(&l.Total, 8<<20)
	return l
}

package version

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
)

// ErrCorrupt is what every error about bytes is: they are not what their
// digest says, or not in canonical form.
var ErrCorrupt = errors.New("corrupt snapshot")

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// A writer appends records to a chunk.
type writer struct {
	b       []byte
	symbols map[string]uint64 // of the chunk
	weight  int               // of the record: its size if no symbol had been known
}

func (w *writer) uvarint(v uint64) {
	n := len(w.b)
	w.b = binary.AppendUvarint(w.b, v)
	w.weight += len(w.b) - n
}

// int writes in zigzag form.
func (w *writer) int(v int64) { w.uvarint(uint64(v)<<1 ^ uint64(v>>63)) }

func (w *writer) byte(v byte) {
	w.b = append(w.b, v)
	w.weight++
}

func (w *writer) string(s string) {
	w.uvarint(uint64(len(s)))
	w.b = append(w.b, s...)
	w.weight += len(s)
}

// symbol writes a string that tends to repeat: its length and bytes when it is
// new in this chunk, else its number. The low bit tells which.
func (w *writer) symbol(s string) {
	if id, ok := w.symbols[s]; ok {
		w.b = binary.AppendUvarint(w.b, id<<1|1)
	} else {
		w.symbols[s] = uint64(len(w.symbols))
		w.b = binary.AppendUvarint(w.b, uint64(len(s))<<1)
		w.b = append(w.b, s...)
	}
	w.weight += symbolWeight(s)
}

// symbolWeight depends on nothing but s, so that the cuts depend on nothing
// but the records. No reference is longer than it allows for.
func symbolWeight(s string) int { return len(s) + 3 }

func (w *writer) addr(a netip.Addr) {
	b := a.AsSlice() // empty for the zero Addr
	w.byte(byte(len(b)))
	w.b = append(w.b, b...)
	w.weight += len(b)
}

// A reader takes records from a chunk. Its first error stays: everything read
// after it is zero, and off no longer moves.
type reader struct {
	s       string // the chunk; strings that are read are parts of it
	off     int
	err     error
	weight  int // as writer.weight
	symbols []string
	known   map[string]struct{} // the symbols, to refuse one that is spelt out twice
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = corrupt("at byte %d: %s", r.off, fmt.Sprintf(format, args...))
	}
}

func (r *reader) more() bool { return r.err == nil && r.off < len(r.s) }

func (r *reader) uvarint() uint64 {
	if r.err == nil && r.off < len(r.s) && r.s[r.off] < 0x80 {
		v := r.s[r.off]
		r.off++
		r.weight++
		return uint64(v)
	}
	return r.longUvarint()
}

func (r *reader) longUvarint() uint64 {
	if r.err != nil {
		return 0
	}
	var v uint64
	for i := 0; ; i++ {
		if r.off+i >= len(r.s) {
			r.fail("number is cut off")
			return 0
		}
		c := r.s[r.off+i]
		if i == 9 && c > 1 {
			r.fail("number does not fit in 64 bits")
			return 0
		}
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			if c == 0 && i > 0 {
				r.fail("number is longer than it needs to be")
				return 0
			}
			r.off += i + 1
			r.weight += i + 1
			return v
		}
	}
}

func (r *reader) int() int64 {
	u := r.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

// word reads what an int of this machine holds.
func (r *reader) word() int {
	v := r.int()
	if bits.UintSize == 32 && int64(int(v)) != v {
		r.fail("number %d does not fit in 32 bits", v)
		return 0
	}
	return int(v)
}

func (r *reader) byte() byte {
	if r.err != nil || r.off >= len(r.s) {
		r.fail("record is cut off")
		return 0
	}
	c := r.s[r.off]
	r.off++
	r.weight++
	return c
}

// bytes returns the next n bytes as a part of the chunk.
func (r *reader) bytes(n uint64) string {
	if r.err != nil {
		return ""
	}
	if n > uint64(len(r.s)-r.off) {
		r.fail("length %d runs past the end", n)
		return ""
	}
	s := r.s[r.off : r.off+int(n)]
	r.off += int(n)
	return s
}

func (r *reader) string() string {
	s := r.bytes(r.uvarint())
	r.weight += len(s)
	return s
}

func (r *reader) symbol() string {
	if i := r.symbolIndex(); r.err == nil {
		return r.symbols[i]
	}
	return ""
}

// symbolIndex reads a symbol and returns its number, which is valid unless an
// error is set.
func (r *reader) symbolIndex() int {
	weight := r.weight
	v := r.uvarint()
	if r.err != nil {
		return 0
	}
	i := v >> 1
	if v&1 == 0 {
		s := r.bytes(v >> 1)
		if r.err != nil {
			return 0
		}
		if _, ok := r.known[s]; ok {
			r.fail("symbol is spelt out twice")
			return 0
		}
		i = uint64(len(r.symbols))
		r.known[s] = struct{}{}
		r.symbols = append(r.symbols, s)
	}
	if i >= uint64(len(r.symbols)) {
		r.fail("symbol %d is not known", i)
		return 0
	}
	r.weight = weight + symbolWeight(r.symbols[i])
	return int(i)
}

// count reads the length of a list whose elements take at least size bytes
// each, and holds it against the bytes that are left.
func (r *reader) count(size int) int {
	n := r.uvarint()
	if r.err == nil && n > uint64(len(r.s)-r.off)/uint64(size) {
		r.fail("list of %d runs past the end", n)
	}
	if r.err != nil {
		return 0
	}
	return int(n)
}

func (r *reader) addr() netip.Addr {
	n := r.byte()
	if n != 0 && n != 4 && n != 16 {
		r.fail("address of %d bytes", n)
		return netip.Addr{}
	}
	b := r.bytes(uint64(n))
	r.weight += len(b)
	if r.err != nil {
		return netip.Addr{}
	}
	switch len(b) {
	case 4:
		return netip.AddrFrom4([4]byte([]byte(b)))
	case 16:
		return netip.AddrFrom16([16]byte([]byte(b)))
	default:
		return netip.Addr{}
	}
}

// A slab hands out slices of large arrays, so that a module's many short lists
// cost few allocations. They live as long as the module.
type slab[T any] struct{ free []T }

func (s *slab[T]) take(n int) []T {
	if n == 0 {
		return nil
	}
	if n > len(s.free) {
		s.free = make([]T, max(n, 64))
	}
	out := s.free[:n:n]
	s.free = s.free[n:]
	return out
}

func (s *slab[T]) one() *T { return &s.take(1)[0] }

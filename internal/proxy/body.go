package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
)

const (
	spliceMin  = 16 << 10  // of what is left of a body, for splicing to pay
	spliceStep = 256 << 10 // moved within one write deadline
	maxLine    = 1 << 10   // of a chunk's size line
)

// respond hands the response to the client.
func (x *exchange) respond() *failure {
	c := x.c
	h := &c.head
	to := x.w.Header()
	x.copyFields(to, h)
	if x.r.ProtoMajor == 1 && x.unread() {
		// The upstream did not wait for the body, or did not ask for it. The rest of
		// it may never come: net/http shall not read it before it writes, nor take
		// it for a request.
		to["Connection"] = []string{"close"}
	}
	x.writeHead(h.status, to)
	x.waits, x.since = forBody, x.lib.now()
	switch {
	case x.r.Method == http.MethodHead || h.status == http.StatusNoContent || h.status == http.StatusNotModified:
		return nil
	case h.chunked:
		return x.copyChunked()
	case h.length >= 0:
		return x.copyLength(h.length)
	default:
		return x.copyToEnd()
	}
}

// copyFields adds a head's fields to what w holds already, and says how the body
// is framed.
func (x *exchange) copyFields(to http.Header, h *head) {
	values := make([]string, len(h.fields)+1)
	alone := len(to) == 0 && !h.dup
	for i, f := range h.fields {
		values[i] = f.value
		v := values[i : i+1 : i+1]
		if !alone {
			if prev := to[f.name]; prev != nil {
				v = append(prev[:len(prev):len(prev)], f.value)
			}
		}
		to[f.name] = v
	}
	if h.length >= 0 && h.status != http.StatusNoContent {
		n := len(h.fields)
		values[n] = h.lengthText
		to["Content-Length"] = values[n : n+1 : n+1]
	}
	if _, ok := to["Content-Type"]; !ok {
		to["Content-Type"] = nil // none is guessed
	}
	if h.chunked && h.trailer != "" && x.r.ProtoAtLeast(1, 1) {
		for name := range tokens(h.trailer) {
			name = http.CanonicalHeaderKey(name)
			if _, taken := to[name]; !taken && trailerAllowed(name) {
				to["Trailer"] = append(to["Trailer"], name)
			}
		}
	}
	if via := x.lib.o.Via; via != "" {
		proto := "1.1 "
		if h.http10 {
			proto = "1.0 "
		}
		to["Via"] = []string{strings.Join(append(to["Via"], proto+via), ", ")}
	}
}

// write hands a part of the body to the client.
func (x *exchange) write(b []byte) *failure {
	x.armDown()
	n, err := x.w.Write(b)
	x.f.Result.BytesOut += int64(n)
	x.pending = true
	if err != nil {
		return x.clientBroken(err)
	}
	return nil
}

// armDown sees to it that a client that takes nothing does not hold the exchange
// forever, from the head on: of answers that nobody reads, or on an HTTP/2 stream
// without a window, the first byte may block. The deadline comes idle and an
// eighth to a quarter later. net/http takes it off afterwards.
func (x *exchange) armDown() {
	now, idle := x.lib.now(), int64(x.u.def.IdleTimeout)
	if x.deadline > 0 {
		idle = max(min(idle, x.deadline-now), 8)
	}
	if x.downArm < now+idle+idle/8 || x.downArm > now+idle+idle/4 {
		x.downArm = now + idle + idle/4
		_ = x.control().SetWriteDeadline(x.lib.at(x.downArm))
	}
}

func (x *exchange) clientBroken(err error) *failure {
	if isTimeout(err) {
		return &failure{KindTimeout, errClientStalled}
	}
	return &failure{KindClientGone, fmt.Errorf("write response: %w", err)}
}

// flush sends on what was handed to w.
func (x *exchange) flush() *failure {
	if !x.pending {
		return nil
	}
	x.armDown()
	x.pending = false
	if err := x.control().Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return x.clientBroken(err)
	}
	return nil
}

// more reads more of the body. When the upstream pauses, the client first gets
// all there is.
func (x *exchange) more() *failure {
	c := x.c
	if x.pending {
		if ready, _ := c.readable(); !ready {
			if fail := x.flush(); fail != nil {
				return fail
			}
		}
	}
	c.room()
	if fail := x.fill(); fail != nil {
		return fail
	}
	x.since = x.lib.now()
	return nil
}

// copyLength copies a body of n bytes.
func (x *exchange) copyLength(n int64) *failure {
	c := x.c
	for n > 0 {
		if b := c.unused(); len(b) > 0 {
			b = b[:min(n, int64(len(b)))]
			if fail := x.write(b); fail != nil {
				return fail
			}
			c.r += len(b)
			n -= int64(len(b))
			continue
		}
		if n >= spliceMin {
			if rf := x.splicer(); rf != nil {
				return x.splice(rf, n)
			}
			c.borrow(x.lib)
		}
		if fail := x.more(); fail != nil {
			return fail
		}
	}
	return nil
}

// splicer returns w as a sink that the kernel can move bytes to, nil where it
// cannot.
func (x *exchange) splicer() io.ReaderFrom {
	if x.c.tls != nil || x.c.tcp == nil || x.r.TLS != nil || x.r.ProtoMajor != 1 {
		return nil
	}
	rf, _ := x.w.(io.ReaderFrom)
	return rf
}

// splice moves n bytes from socket to socket.
func (x *exchange) splice(rf io.ReaderFrom, n int64) *failure {
	if fail := x.flush(); fail != nil {
		return fail
	}
	for n > 0 {
		x.armDown()
		// Where w falls back to copying, it shall not sit on bytes for long.
		at, _ := x.limit()
		x.c.readArm = min(at, x.lib.now()+tick)
		_ = x.c.raw.SetReadDeadline(x.lib.at(x.c.readArm))
		step := min(n, spliceStep)
		x.limited = io.LimitedReader{R: x.c.tcp, N: step}
		moved, err := rf.ReadFrom(&x.limited)
		n -= moved
		x.f.Result.BytesOut += moved
		now := x.lib.now()
		if moved > 0 {
			x.since = now
		}
		switch {
		case isTimeout(err):
			if x.downArm > 0 && now >= x.downArm {
				return x.clientBroken(err)
			}
			// The upstream's side, where nothing is lost.
			x.pending = true
			if fail := x.flush(); fail != nil {
				return fail
			}
			if fail := x.waited(); fail != nil {
				return fail
			}
		case errors.Is(err, syscall.EPIPE), err != nil && x.c.connected():
			return x.clientBroken(err)
		case err != nil:
			return x.broken(fmt.Errorf("copy body: %w", err))
		case moved < step:
			return x.broken(fmt.Errorf("read response: %w", io.ErrUnexpectedEOF))
		}
	}
	return nil
}

// copyToEnd copies a body that ends with the connection.
func (x *exchange) copyToEnd() *failure {
	x.c.borrow(x.lib)
	for {
		if b := x.c.unused(); len(b) > 0 {
			if fail := x.write(b); fail != nil {
				return fail
			}
			x.c.r += len(b)
		}
		if fail := x.more(); fail != nil {
			if x.eof && !x.resetInUpload() {
				return nil
			}
			return fail
		}
	}
}

// resetInUpload tells whether the upload met a reset before the end that was read.
// The kernel tells of one once: if a write was told, a read finds an end in order
// (I11). Of a reset that came after such an end, writes are told EPIPE.
func (x *exchange) resetInUpload() bool {
	if x.upload == nil || x.c.tls != nil || x.c.connected() { // TLS has an end of its own
		return false
	}
	x.endUpload()
	var no syscall.Errno
	return errors.As(x.upload.broke, &no) && no != syscall.EPIPE
}

// copyChunked copies a chunked body and its trailers.
func (x *exchange) copyChunked() *failure {
	c := x.c
	for {
		size, fail := x.chunkSize()
		if fail != nil {
			return fail
		}
		if size == 0 {
			return x.copyTrailers()
		}
		for size > 0 {
			b := c.unused()
			if len(b) == 0 {
				if size >= smallBuffer {
					c.borrow(x.lib)
				}
				if fail := x.more(); fail != nil {
					return fail
				}
				continue
			}
			b = b[:min(size, int64(len(b)))]
			if fail := x.write(b); fail != nil {
				return fail
			}
			c.r += len(b)
			size -= int64(len(b))
		}
		if _, fail := x.line(0); fail != nil {
			return fail
		}
	}
}

func badChunk(why string) *failure {
	return &failure{KindBadResponse, errors.New("chunked body: " + why)}
}

// chunkSize reads a size line. An extension is read over.
func (x *exchange) chunkSize() (int64, *failure) {
	line, fail := x.line(maxLine)
	if fail != nil {
		return 0, fail
	}
	var size int64
	i := 0
	for ; i < len(line); i++ {
		d := hexDigit(line[i])
		if d < 0 {
			break
		}
		if i == 15 {
			return 0, badChunk("size too large")
		}
		size = size<<4 | int64(d)
	}
	ext := trimOWS(line[i:])
	if i == 0 || ext != "" && ext[0] != ';' || !validValue(ext) {
		return 0, badChunk(fmt.Sprintf("malformed size line %.40q", line))
	}
	return size, nil
}

func hexDigit(b byte) int {
	switch {
	case '0' <= b && b <= '9':
		return int(b - '0')
	case 'a' <= b && b <= 'f':
		return int(b-'a') + 10
	case 'A' <= b && b <= 'F':
		return int(b-'A') + 10
	}
	return -1
}

// line reads up to limit bytes that end in CRLF, and returns them without it.
// Longer lines are errors, so with limit 0 just CRLF is accepted.
func (x *exchange) line(limit int) (string, *failure) {
	c := x.c
	for seen := 0; ; {
		b := c.unused()
		for ; seen < len(b); seen++ {
			if seen > 0 && b[seen-1] == '\r' && b[seen] == '\n' {
				c.r += seen + 1
				return string(b[:seen-1]), nil
			}
			if b[seen] == '\n' || seen > 0 && b[seen-1] == '\r' {
				return "", badChunk("line does not end in CRLF")
			}
			if seen > limit || seen == limit && b[seen] != '\r' {
				if limit == 0 {
					return "", badChunk("data longer than its size")
				}
				return "", badChunk("line too long")
			}
		}
		if !c.room() {
			c.grow()
		}
		if fail := x.more(); fail != nil {
			return "", fail
		}
	}
}

// copyTrailers reads what follows the last chunk and hands on what may.
func (x *exchange) copyTrailers() *failure {
	o := &x.lib.o
	left := o.MaxHeadBytes
	for n := 0; ; n++ {
		line, fail := x.line(left)
		if fail != nil {
			return fail
		}
		if line == "" {
			return nil
		}
		if left -= len(line); n == o.MaxHeadFields || left <= 0 {
			return badChunk("trailers too long")
		}
		name, value, err := splitField(line)
		if err != nil {
			return badChunk(err.Error())
		}
		if !trailerAllowed(name) || strings.HasPrefix(name, ownPrefix) || !x.r.ProtoAtLeast(1, 1) {
			continue
		}
		// Once the head is out, net/http knows that chunks and so trailers are to follow.
		if fail := x.flush(); fail != nil {
			return fail
		}
		h := x.w.Header()
		key := http.TrailerPrefix + name
		h[key] = append(h[key], value)
	}
}

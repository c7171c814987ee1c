package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
)

// An upload carries a request's body upstream while the exchange's own
// goroutine carries the response. It ends by itself, or when the connection
// is killed and the client's reads are cut off; see exchange.endUpload.
type upload struct {
	c        *conn
	body     io.Reader
	trailer  http.Header // filled in by body's end
	passes   func(name string) bool
	framing  framing
	idle     int64
	progress atomic.Int64 // when a byte last moved
	sent     atomic.Int64 // bytes of the body that were written upstream
	writing  atomic.Bool  // waits for the upstream, not for the client

	// drained: the client's body was read to its end. Set before the last
	// bytes are written, so whoever answers to a whole body answers after it.
	drained atomic.Bool
	stop    atomic.Bool
	failed  atomic.Pointer[failure] // set before the connection is killed because of it
	done    chan struct{}           // closed at the end
	whole   bool                    // everything was written; valid after done
	broke   error                   // of the write that failed; valid after done
}

func (x *exchange) startUpload() {
	p := &upload{
		c:       x.c,
		body:    x.r.Body,
		framing: x.framing,
		idle:    int64(x.u.def.IdleTimeout),
		done:    make(chan struct{}),
	}
	if p.framing.trailers {
		p.trailer, p.passes = x.r.Trailer, x.trailerPasses
	}
	p.progress.Store(x.lib.now())
	x.upload = p
	if x.r.ProtoMajor == 1 {
		// Without it net/http reads the rest of the body itself before it writes.
		_ = x.control().EnableFullDuplex()
	}
	go p.run()
}

func (p *upload) run() {
	defer close(p.done)
	err := p.copy()
	if err != nil && err.kind == KindUpstreamReset {
		p.broke = err.err
	}
	switch {
	case err == nil:
		p.whole = true
	case p.stop.Load():
	case err.kind != KindUpstreamReset:
		// The client's fault: nothing more can come of this exchange.
		p.failed.Store(err)
		p.c.kill()
	}
	// An upstream that takes no more may have answered: the response is
	// still read, and tells.
}

// Room around a chunk's data: its size line before, its end and the last chunk
// behind.
const (
	chunkBefore = 10
	chunkBehind = 2 + 5
)

func (p *upload) copy() *failure {
	l := p.c.target.up.lib
	arr := l.borrow()
	defer l.buffers.Put(arr)
	buf := arr[:]
	if p.framing.chunked {
		buf = arr[chunkBefore : largeBuffer-chunkBehind]
	}
	for left := p.framing.length; ; {
		if p.stop.Load() {
			return &failure{KindClientGone, errors.New("upload ended")}
		}
		n, err := p.body.Read(buf)
		p.progress.Store(l.now())
		left -= int64(n)
		end := err == io.EOF || !p.framing.chunked && left == 0
		if !end && err != nil {
			return clientFailure(err)
		}
		if !p.framing.chunked && (left < 0 || end && left > 0) {
			return clientFailure(io.ErrUnexpectedEOF)
		}
		if end {
			p.drained.Store(true)
		}
		out := buf[:n]
		if p.framing.chunked {
			out = p.chunk(arr[:], n, end)
		}
		if err := p.write(l, out, n); err != nil {
			return &failure{KindUpstreamReset, fmt.Errorf("send body: %w", err)}
		}
		if end {
			return nil
		}
	}
}

func (p *upload) write(l *Library, out []byte, n int) error {
	if len(out) == 0 {
		return nil
	}
	p.writing.Store(true)
	p.c.armWrite(l, p.idle)
	_, err := p.c.nc.Write(out)
	if isTimeout(err) {
		return err // and it writes still: the reader is to see who stalled
	}
	p.progress.Store(l.now())
	p.writing.Store(false)
	if err == nil {
		p.sent.Add(int64(n))
	}
	return err
}

// chunk frames the n bytes at arr[chunkBefore:], and ends the body.
func (p *upload) chunk(arr []byte, n int, end bool) []byte {
	begin, tail := chunkBefore, chunkBefore+n
	if n > 0 {
		var line [chunkBefore]byte
		s := append(strconv.AppendUint(line[:0], uint64(n), 16), '\r', '\n')
		begin -= len(s)
		copy(arr[begin:], s)
		tail += copy(arr[tail:], "\r\n")
	}
	if !end {
		return arr[begin:tail]
	}
	out := append(arr[begin:tail], "0\r\n"...)
	for name, values := range p.trailer {
		for _, v := range values {
			if p.passes(name) && validValue(v) {
				out = appendField(out, name, v)
			}
		}
	}
	return append(out, "\r\n"...)
}

// clientFailure says what a failure to read the client's body is.
func clientFailure(err error) *failure {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return &failure{KindTooLarge, fmt.Errorf("read body: %w", err)}
	case isTimeout(err):
		return &failure{KindTimeout, errClientStalled}
	default:
		return &failure{KindClientGone, fmt.Errorf("read body: %w", err)}
	}
}

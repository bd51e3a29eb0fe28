package gate

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"bj/sandbox"
)

// Bounds of what is judged.
const (
	maxHeader     = 64 << 10 // bytes of a message's head, either way
	maxHello      = 32 << 10 // bytes of a TLS connection's greeting
	headTimeout   = 2 * time.Minute
	maxInterim    = 16 // answers before the answer
	silentTimeout = 30 * time.Second
	endsTimeout   = 100 * time.Millisecond // for a question to end after its answer
)

// Request is one that was not passed on.
type Request struct {
	Machine      string
	Unit         string // as of a Question
	Scheme       string // "http" or "https"
	Host, Method string // as far as they are known
	Path         string
	From, To     netip.AddrPort // the ends of the connection, as the machine sees them
	At           time.Time
}

// judge carries one connection of which every request is judged.
type judge struct {
	relay     *Relay
	conn      *relayed
	ctx       context.Context
	authority *authority
	machine   string
	pair      pair
}

// carry judges by what the connection begins with.
func (j *judge) carry() {
	in, out := net.Conn(j.conn.in), j.conn.out
	br := bufio.NewReaderSize(in, 4096)
	in.SetReadDeadline(time.Now().Add(headTimeout))
	first, err := br.Peek(1)
	if err != nil {
		return
	}
	overTLS := first[0] == 0x16
	rules := slices.DeleteFunc(slices.Clone(j.conn.judged), func(a sandbox.Allow) bool { return a.HTTP.TLS != overTLS })
	if len(rules) == 0 {
		j.refuse(Request{Scheme: scheme(overTLS)})
		return
	}
	if !overTLS {
		j.serve(in, br, out, rules, false)
		return
	}
	hello, name, plain, err := readHello(br)
	host := strings.ToLower(strings.TrimSuffix(name, "."))
	if host == "" {
		host = j.pair.to.Addr().String()
	}
	rules = slices.DeleteFunc(rules, func(a sandbox.Allow) bool { return a.HTTP.Host != host })
	if err != nil || len(rules) == 0 || !plain {
		j.refuse(Request{Scheme: "https", Host: host})
		return
	}
	if i := slices.IndexFunc(rules, func(a sandbox.Allow) bool { return !a.HTTP.Inspect }); i >= 0 {
		in.SetReadDeadline(time.Time{})
		j.count(rules[i].Condition, 1, int64(len(hello)))
		if _, err := out.Write(hello); err != nil {
			j.conn.abort()
			return
		}
		if n := br.Buffered(); n > 0 {
			b, _ := br.Peek(n)
			if _, err := out.Write(b); err != nil {
				j.conn.abort()
				return
			}
		}
		j.count(rules[i].Condition, 0, j.conn.carry())
		return
	}
	j.inspect(hello, br, host, rules)
}

// inspect ends TLS here, both ways.
func (j *judge) inspect(hello []byte, br *bufio.Reader, host string, rules []sandbox.Allow) {
	cert, err := j.authority.certificate(host)
	if err != nil {
		j.refuse(Request{Scheme: "https", Host: host})
		return
	}
	config := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	var pem strings.Builder
	for _, a := range rules {
		pem.WriteString(a.HTTP.CA + "\n")
	}
	if strings.TrimSpace(pem.String()) != "" {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM([]byte(pem.String())) {
			j.refuse(Request{Scheme: "https", Host: host})
			return
		}
	}
	ctx, cancel := context.WithTimeout(j.ctx, headTimeout)
	defer cancel()
	outer := tls.Client(j.conn.out, config)
	if err := outer.HandshakeContext(ctx); err != nil {
		j.conn.abort() // who should be there is not
		return
	}
	inner := tls.Server(&replayed{Conn: j.conn.in, head: hello, rest: br}, &tls.Config{
		Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, SessionTicketsDisabled: true,
	})
	if err := inner.HandshakeContext(ctx); err != nil {
		return
	}
	j.serve(inner, bufio.NewReaderSize(inner, 4096), outer, rules, true)
}

// replayed is a connection of which some bytes have been read already.
type replayed struct {
	net.Conn
	head []byte
	rest *bufio.Reader
}

func (r *replayed) Read(b []byte) (int, error) {
	if len(r.head) > 0 {
		n := copy(b, r.head)
		r.head = r.head[n:]
		return n, nil
	}
	return r.rest.Read(b)
}

var errHello = errors.New("read")

// readHello reads the greeting of a TLS connection: all its bytes, and the name
// that it asks for. It is not plain if it hides another name.
func readHello(br *bufio.Reader) (raw []byte, name string, plain bool, err error) {
	rec := &recorder{r: io.LimitReader(br, maxHello)}
	found := false
	server := tls.Server(rec, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		found, name = true, h.ServerName
		plain = !slices.Contains(h.Extensions, 0xfe0d) // encrypted client hello
		return nil, errHello
	}})
	err = server.Handshake()
	if found {
		return rec.seen, name, plain, nil
	}
	return rec.seen, "", false, err
}

// recorder is a connection that keeps what is read, and says nothing.
type recorder struct {
	r    io.Reader
	seen []byte
}

func (c *recorder) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.seen = append(c.seen, b[:n]...)
	return n, err
}
func (c *recorder) Write(b []byte) (int, error)      { return len(b), nil }
func (c *recorder) Close() error                     { return nil }
func (c *recorder) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *recorder) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *recorder) SetDeadline(time.Time) error      { return nil }
func (c *recorder) SetReadDeadline(time.Time) error  { return nil }
func (c *recorder) SetWriteDeadline(time.Time) error { return nil }

// limited bounds what is read of a connection while a head is read.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(b []byte) (int, error) {
	if l.left <= 0 {
		return 0, errors.New("the head of the message is too long")
	}
	if int64(len(b)) > l.left {
		b = b[:l.left]
	}
	n, err := l.r.Read(b)
	l.left -= int64(n)
	return n, err
}

// serve passes requests on, one after the other, each in words of the relay's.
func (j *judge) serve(in net.Conn, br *bufio.Reader, out net.Conn, rules []sandbox.Allow, overTLS bool) {
	head := &limited{r: br}
	requests := bufio.NewReaderSize(head, 4096)
	back := &limited{r: out}
	replies := bufio.NewReaderSize(back, 4096)
	for {
		head.left = maxHeader
		in.SetReadDeadline(time.Now().Add(headTimeout))
		req, err := http.ReadRequest(requests)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				j.refuse(Request{Scheme: scheme(overTLS)})
			}
			return
		}
		in.SetReadDeadline(time.Time{})
		rule := allowRequest(rules, req, overTLS, j.pair.to.Port())
		if rule == nil {
			j.refuse(Request{Scheme: scheme(overTLS), Host: req.Host, Method: req.Method, Path: req.URL.Path})
			return
		}
		j.count(rule.Condition, 1, 0)
		more, n := j.one(in, out, req, head, back, replies)
		j.count(rule.Condition, 0, n)
		if !more {
			return
		}
	}
}

// one passes one request on, and its answer back. It reports whether another may
// follow, and the bytes of both bodies.
func (j *judge) one(in, out net.Conn, req *http.Request, head, back *limited, replies *bufio.Reader) (more bool, n int64) {
	if strings.EqualFold(req.Header.Get("Expect"), "100-continue") {
		// The body is wanted: what it is for has been judged.
		if _, err := io.WriteString(in, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
			return false, 0
		}
	}
	next := &http.Request{
		Method: req.Method, URL: req.URL, Host: req.Host, Header: req.Header.Clone(),
		ContentLength: req.ContentLength, TransferEncoding: req.TransferEncoding, ProtoMajor: 1, ProtoMinor: 1,
	}
	strip(next.Header)
	for name := range next.Header {
		// A server that takes _ for - must not see what was stripped.
		if strings.Contains(name, "_") {
			delete(next.Header, name)
		}
	}
	if len(next.Header.Values("User-Agent")) == 0 {
		next.Header["User-Agent"] = []string{""}
	}
	body := &counted{r: req.Body}
	if req.ContentLength != 0 {
		next.Body = io.NopCloser(body)
	}
	head.left = math.MaxInt64
	sent := make(chan error, 1)
	go func() {
		w := bufio.NewWriter(out)
		body.before = w
		err := next.Write(plainWriter{w})
		if err == nil {
			err = w.Flush()
		}
		sent <- err
	}()
	var reply *http.Response
	var err error
	for range maxInterim {
		back.left = maxHeader
		if reply, err = http.ReadResponse(replies, req); err != nil || reply.StatusCode >= 200 || reply.StatusCode == http.StatusSwitchingProtocols {
			break
		}
	}
	if err != nil || reply.StatusCode < 200 {
		j.conn.abort()
		<-sent
		return false, body.n.total()
	}
	defer reply.Body.Close()
	back.left = math.MaxInt64
	strip(reply.Header)
	reply.Header.Del("Alt-Svc")
	reply.Trailer = nil
	w := bufio.NewWriter(in)
	answer := &counted{r: reply.Body, before: w}
	reply.Body = io.NopCloser(answer)
	if !req.ProtoAtLeast(1, 1) {
		reply.ProtoMajor, reply.ProtoMinor, reply.TransferEncoding = 1, 0, nil
	}
	reply.Close = reply.Close || req.Close || !req.ProtoAtLeast(1, 1)
	if err = reply.Write(plainWriter{w}); err == nil {
		err = w.Flush()
	}
	if err != nil {
		j.conn.abort()
		<-sent
		return false, body.n.total() + answer.n.total()
	}
	ok := true
	select {
	case err := <-sent:
		ok = err == nil
	case <-time.After(endsTimeout):
		// The answer came before the end of the question: nothing follows it.
		j.conn.in.SetDeadline(time.Unix(1, 0))
		j.conn.out.SetDeadline(time.Unix(1, 0))
		<-sent
		ok = false
	}
	return ok && !reply.Close && !closes(reply), body.n.total() + answer.n.total()
}

// closes reports whether the end of an answer is the end of its connection.
func closes(r *http.Response) bool {
	return r.ContentLength < 0 && !slices.Contains(r.TransferEncoding, "chunked") && r.Request.Method != http.MethodHead &&
		r.StatusCode != http.StatusNoContent && r.StatusCode != http.StatusNotModified
}

// counted counts a body, and flushes what was written of it before it waits for
// more.
type counted struct {
	r      io.Reader
	before *bufio.Writer
	n      sum
}

func (c *counted) Read(b []byte) (int, error) {
	if c.before != nil && c.before.Buffered() > 0 {
		if err := c.before.Flush(); err != nil {
			return 0, err
		}
	}
	n, err := c.r.Read(b)
	c.n.add(n)
	return n, err
}

// plainWriter is a writer that does not read by itself: what is flushed in
// between would be lost to it.
type plainWriter struct{ w *bufio.Writer }

func (p plainWriter) Write(b []byte) (int, error) { return p.w.Write(b) }
func (p plainWriter) WriteByte(c byte) error      { return p.w.WriteByte(c) }

type sum struct {
	mu sync.Mutex
	n  int64
}

func (s *sum) add(n int)    { s.mu.Lock(); s.n += int64(n); s.mu.Unlock() }
func (s *sum) total() int64 { s.mu.Lock(); defer s.mu.Unlock(); return s.n }

func scheme(overTLS bool) string {
	if overTLS {
		return "https"
	}
	return "http"
}

func (j *judge) count(condition int, requests, bytes int64) {
	j.relay.mu.Lock()
	defer j.relay.mu.Unlock()
	j.relay.count(condition, requests, bytes)
}

// refuse tells of a request that is not passed on, and leaves the machine
// without an answer for as long as it waits.
func (j *judge) refuse(r Request) {
	j.conn.out.Close()
	if j.relay.Refused != nil {
		r.Machine, r.Unit, r.From, r.To, r.At = j.machine, j.conn.unit, j.pair.from, j.pair.to, time.Now()
		r.Host, _ = hostOf(r.Host, j.pair.to.Port())
		if r.Host == "" {
			r.Host = j.pair.to.Addr().String()
		}
		r.Path = r.Path[:min(len(r.Path), 256)]
		r.Method = r.Method[:min(len(r.Method), 32)]
		j.relay.Refused(r)
	}
	j.conn.in.SetReadDeadline(time.Now().Add(silentTimeout))
	io.Copy(io.Discard, j.conn.in)
}

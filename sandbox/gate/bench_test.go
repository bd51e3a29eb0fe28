package gate_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"testing"
	"time"

	"bj/sandbox"
)

// BenchmarkRelay carries TCP from a machine through the relay to a service
// outside, and over a direct connection on the service's own loopback. The
// metric is the first's throughput by the second's.
func BenchmarkRelay(b *testing.B) {
	const size = 256 << 20
	s := newSetting(b, 1, usual(), nil)
	l := s.world.Listen("tcp4", join(outside4, 1000))
	connect := func(dial func() (net.Conn, error)) func() time.Duration {
		out, err := dial()
		if err != nil {
			b.Fatal(err)
		}
		in, err := l.Accept()
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { in.Close() })
		return func() time.Duration { return pour(b, out, in, size) }
	}
	relayed := connect(func() (net.Conn, error) { return s.Machines[0].Dial("tcp4", join(outside4, 1000), soon) })
	direct := connect(func() (net.Conn, error) { return s.world.Dial("tcp4", join(outside4, 1000), soon) })
	relayed()
	direct() // to warm up
	var through, past time.Duration
	b.SetBytes(size)
	b.ResetTimer()
	for range b.N {
		through += relayed()
		b.StopTimer()
		past += direct()
		b.StartTimer()
	}
	b.ReportMetric(past.Seconds()/through.Seconds(), "x-direct")
}

// BenchmarkRequests fetches a large body through the relay, which judges the
// request, and over a direct connection. The metric is as BenchmarkRelay's.
func BenchmarkRequests(b *testing.B) {
	const size = 64 << 20
	a := allow("tcp", outside4+"/32", 1000, 1000)
	a.HTTP = &sandbox.HTTP{Host: outside4, Path: "/stable", Methods: []string{"GET"}}
	s := newSetting(b, 1, sandbox.Policy{Allows: []sandbox.Allow{a}}, nil)
	data := make([]byte, 1<<20)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(size))
		for range size / len(data) {
			w.Write(data)
		}
	})}
	go server.Serve(s.world.Listen("tcp4", join(outside4, 1000)))
	b.Cleanup(func() { server.Close() })
	client := func(dial func(network, address string, timeout time.Duration) (net.Conn, error)) func() time.Duration {
		c := &http.Client{Transport: &http.Transport{DialContext: func(_ context.Context, network, address string) (net.Conn, error) {
			return dial(network, address, soon)
		}}}
		return func() time.Duration {
			start := time.Now()
			r, err := c.Get("http://" + join(outside4, 1000) + "/stable/x")
			if err != nil {
				b.Fatal(err)
			}
			defer r.Body.Close()
			if n, err := io.Copy(io.Discard, r.Body); n != size || err != nil {
				b.Fatalf("%d bytes: %v", n, err)
			}
			return time.Since(start)
		}
	}
	judged, direct := client(s.Machines[0].Dial), client(s.world.Dial)
	judged()
	direct() // to warm up
	var through, past time.Duration
	b.SetBytes(size)
	b.ResetTimer()
	for range b.N {
		through += judged()
		b.StopTimer()
		past += direct()
		b.StartTimer()
	}
	b.ReportMetric(past.Seconds()/through.Seconds(), "x-direct")
}

// pour sends so many bytes and returns how long they took to arrive.
func pour(b *testing.B, out, in net.Conn, size int64) time.Duration {
	start := time.Now()
	failed := make(chan error, 1)
	go func() {
		buf := make([]byte, 256<<10)
		for sent := int64(0); sent < size; {
			n, err := out.Write(buf[:min(int64(len(buf)), size-sent)])
			if err != nil {
				failed <- err
				return
			}
			sent += int64(n)
		}
		failed <- nil
	}()
	buf := make([]byte, 256<<10)
	for left := size; left > 0; {
		n, err := in.Read(buf[:min(int64(len(buf)), left)])
		left -= int64(n)
		if err != nil && (err != io.EOF || left > 0) {
			b.Fatalf("%d bytes are missing: %v", left, err)
		}
	}
	if err := <-failed; err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

package gate_test

import (
	"io"
	"net"
	"testing"
	"time"
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

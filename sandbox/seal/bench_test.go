package seal_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"bj/fleet"
	"bj/sandbox"
	"bj/sandbox/seal"
	"bj/sandbox/seal/sealtest"
)

// manyAllows is 10,000 allows of single addresses, networks and ranges.
func manyAllows() sandbox.Policy {
	var p sandbox.Policy
	for i := range 10000 {
		a := sandbox.Allow{Condition: i % 7, Protocol: []string{"tcp", "udp"}[i%2], First: uint16(1000 + i%100), Last: uint16(1000 + i%100)}
		addr := netip.AddrFrom4([4]byte{100, byte(64 + i>>12), byte(i >> 4), byte(i << 4)})
		switch i % 4 {
		case 0:
			a.Prefix = netip.PrefixFrom(addr, 28).Masked()
		case 1:
			a.Prefix, a.Last = netip.PrefixFrom(addr, 32), a.First+50
		default:
			a.Prefix = netip.PrefixFrom(addr, 32)
		}
		p.Allows = append(p.Allows, a)
	}
	return p
}

// BenchmarkApply10k compiles and applies 10,000 allows, and reads the same
// rules with nft. The metric is the first's time by the second's.
func BenchmarkApply10k(b *testing.B) {
	if _, err := exec.LookPath("nft"); err != nil {
		b.Skip("nft is not installed")
	}
	sealtest.Need(b)
	p, h := manyAllows(), hub(0)
	file := filepath.Join(b.TempDir(), "rules")
	if err := os.WriteFile(file, []byte(normal(compile(b, p, h).String())), 0o644); err != nil {
		b.Fatal(err)
	}
	var ours, theirs time.Duration
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		here, there := sealtest.NewNS(b), sealtest.NewNS(b)
		b.StartTimer()
		start := time.Now()
		table, err := seal.Apply(here.FD(), compile(b, p, h))
		if err != nil {
			b.Fatal(err)
		}
		ours += time.Since(start)
		b.StopTimer()
		start = time.Now()
		if out, err := there.Run("nft", "-f", file); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		theirs += time.Since(start)
		table.Close()
		b.StartTimer()
	}
	b.ReportMetric(ours.Seconds()/theirs.Seconds(), "x-nft")
}

// BenchmarkThroughput carries TCP from one machine to another through the
// sealed hub, and through the same links without rules. The metric is the
// first's throughput by the second's.
func BenchmarkThroughput(b *testing.B) {
	const size = 256 << 20
	transfer := func(n *sealtest.Net) func() time.Duration {
		l := n.Machines[1].Listen("tcp4", join(n.Config.Machines[1].V4, 1000))
		out, err := n.Machines[0].Dial("tcp4", l.Addr().String(), soon)
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
	plain, sealed := sealtest.New(b, 2), sealtest.New(b, 2)
	apply(b, sealed.Hub, compile(b, sandbox.Policy{Internal: []fleet.Ports{ports("tcp", 1000, 1000)}}, sealed.Config))
	withRules, without := transfer(sealed), transfer(plain)
	withRules()
	without() // to warm up
	var with, bare time.Duration
	b.SetBytes(size)
	b.ResetTimer()
	for range b.N {
		with += withRules()
		b.StopTimer()
		bare += without()
		b.StartTimer()
	}
	b.ReportMetric(bare.Seconds()/with.Seconds(), "x-bare")
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
		if err != nil && err != io.EOF {
			b.Fatal(err)
		}
		if n == 0 {
			b.Fatal(fmt.Errorf("%d bytes are missing", left))
		}
		left -= int64(n)
	}
	if err := <-failed; err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

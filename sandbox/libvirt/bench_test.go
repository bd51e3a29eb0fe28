package libvirt

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"bj/sandbox"
	"bj/sandbox/image"
)

// lease leases and seals, and returns how long each took.
func lease(b *testing.B, p *Provider, n int, from map[string]string) (env sandbox.Environment, leased, sealed time.Duration) {
	b.Helper()
	start := time.Now()
	env, err := p.LeaseFrom(b.Context(), spec(n), from)
	if err != nil {
		b.Fatal(err)
	}
	leased = time.Since(start)
	start = time.Now()
	if err := env.Seal(b.Context(), sandbox.Policy{}); err != nil {
		env.Release(context.Background())
		b.Fatal(err)
	}
	return env, leased, time.Since(start)
}

func end(b *testing.B, env sandbox.Environment) {
	b.Helper()
	if err := env.Release(context.Background()); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkColdLease is a machine from nothing until its agent answers, beside
// QEMU alone with the same kernel, initramfs, devices and agent.
func BenchmarkColdLease(b *testing.B) {
	template(b)
	p := provider(b)
	var ours, plain time.Duration
	for b.Loop() {
		env, took, _ := lease(b, p, 1, nil)
		end(b, env)
		ours += took
		plain += plainQEMU(b, p)
	}
	b.ReportMetric(float64(ours.Nanoseconds())/float64(b.N), "ns/op")
	b.ReportMetric(ours.Seconds()/plain.Seconds(), "x-plain-QEMU")
}

// plainQEMU boots a machine as libvirt would, without it, and returns how long it
// takes until its agent answers.
func plainQEMU(b *testing.B, p *Provider) time.Duration {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), bootDeadline+becomeDeadline)
	defer cancel()
	s := spec(1)
	m, files, err := p.plan(ctx, s.Machines[0])
	if err != nil {
		b.Fatal(err)
	}
	m.folder, m.lease.Name = b.TempDir(), "bjbench"
	if err := addTap(m.domain()); err != nil {
		b.Fatal(err)
	}
	defer func() {
		if link, err := netlink.LinkByName(m.domain()); err == nil {
			netlink.LinkDel(link)
		}
	}()
	accel := "tcg"
	if p.KVM().State == KVMWorks {
		accel = "kvm"
	}
	args := []string{"-machine", machineType + ",accel=" + accel, "-cpu", "max", "-m", strconv.FormatInt((m.memory+overhead)>>20, 10), "-smp", "1",
		"-nodefaults", "-no-user-config", "-display", "none",
		"-kernel", m.boot.Kernel, "-initrd", m.boot.Initramfs, "-append", strings.Join(append([]string{"console=" + image.Console()}, m.boot.Cmdline...), " "),
		"-drive", "file=" + m.boot.Disk.Path + ",format=raw,if=virtio,readonly=on",
		"-netdev", "tap,id=net,ifname=" + m.domain() + ",script=no,downscript=no", "-device", "virtio-net-pci,netdev=net",
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci", "-serial", "file:" + m.console()}
	for _, port := range []string{controlPort, agentPort} {
		args = append(args, "-chardev", "socket,server=on,wait=off,id="+port+",path="+m.port(port), "-device", "virtserialport,chardev="+port+",name="+port)
	}
	start := time.Now()
	cmd := exec.CommandContext(ctx, "qemu-system-"+machineArch, args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	dial := func(port string) net.Conn {
		for {
			if conn, err := dialPort(ctx, m.port(port)); err == nil {
				return conn
			}
			if ctx.Err() != nil {
				b.Fatal("plain QEMU does not listen")
			}
			time.Sleep(time.Millisecond)
		}
	}
	control := dial(controlPort)
	defer control.Close()
	g := &guestMachine{name: m.name, channel: dial(agentPort)}
	defer g.channel.Close()
	if g.control, err = newControl(ctx, m.name, control); err != nil {
		b.Fatal(err)
	}
	if err := g.become(ctx, s, m, files); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

// BenchmarkWarmLease is a machine from its template, beside one from nothing.
func BenchmarkWarmLease(b *testing.B) {
	from := warm(b, 1)
	p := provider(b)
	var ours, cold time.Duration
	for b.Loop() {
		env, took, _ := lease(b, p, 1, from)
		end(b, env)
		ours += took
		env, took, _ = lease(b, p, 1, nil)
		end(b, env)
		cold += took
	}
	b.ReportMetric(float64(ours.Nanoseconds())/float64(b.N), "ns/op")
	b.ReportMetric(ours.Seconds()/cold.Seconds(), "x-cold")
}

// BenchmarkFourLeases is four machines from their template at once, beside four
// times one.
func BenchmarkFourLeases(b *testing.B) {
	from := warm(b, 4)
	p := provider(b)
	var ours, single time.Duration
	for b.Loop() {
		env, took, _ := lease(b, p, 4, from)
		end(b, env)
		ours += took
		env, took, _ = lease(b, p, 1, from)
		end(b, env)
		single += 4 * took
	}
	b.ReportMetric(float64(ours.Nanoseconds())/float64(b.N), "ns/op")
	b.ReportMetric(ours.Seconds()/single.Seconds(), "x-one-by-one")
}

// BenchmarkSealedMachine is the seal of a warm machine, beside its lease.
func BenchmarkSealedMachine(b *testing.B) {
	from := warm(b, 1)
	p := provider(b)
	var ours, leased time.Duration
	for b.Loop() {
		env, took, sealed := lease(b, p, 1, from)
		end(b, env)
		ours += sealed
		leased += took
	}
	b.ReportMetric(float64(ours.Nanoseconds())/float64(b.N), "ns/op")
	b.ReportMetric(ours.Seconds()/leased.Seconds(), "x-lease")
}

// BenchmarkMachineCommand is a command from its start to its end in a virtual
// machine, beside one question and answer of its control channel.
func BenchmarkMachineCommand(b *testing.B) {
	env, _, _ := lease(b, provider(b), 1, warm(b, 1))
	defer end(b, env)
	m := env.Machines()[0].(*guestMachine)
	var ours, trip time.Duration
	for b.Loop() {
		start := time.Now()
		proc, err := m.Start(b.Context(), sandbox.Command{Argv: []string{"/bin/true"}, Unit: "bench"}, func(sandbox.Stream, []byte) {})
		if err != nil {
			b.Fatal(err)
		}
		if exit, err := proc.Wait(b.Context()); err != nil || exit.Code != 0 {
			b.Fatal(exit, err)
		}
		ours += time.Since(start)
		start = time.Now()
		if err := m.control.call(b.Context(), "clock", time.Now().UnixNano(), nil); err != nil {
			b.Fatal(err)
		}
		trip += time.Since(start)
	}
	b.ReportMetric(ours.Seconds()/trip.Seconds(), "x-round-trip")
}

// BenchmarkMachineFile is a file of 16 MiB on its way to a virtual machine, beside
// the 33 MB/s of a bare channel of an emulated one.
func BenchmarkMachineFile(b *testing.B) {
	env, _, _ := lease(b, provider(b), 1, warm(b, 1))
	defer end(b, env)
	const size = 16 << 20
	m := env.Machines()[0].(*guestMachine)
	f := sandbox.File{Path: "/srv/big", Mode: 0o644, Content: make([]byte, size)}
	b.SetBytes(size)
	for b.Loop() {
		if err := m.client.Put(b.Context(), f); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/(size/33e6), "x-bare-channel")
}

// BenchmarkCloneMemory is what each of two machines of one template takes of the
// host's memory (its own, and its share of what is shared), beside what it was
// given.
func BenchmarkCloneMemory(b *testing.B) {
	from := warm(b, 2)
	p := provider(b)
	var sum int64
	for b.Loop() {
		env, _, _ := lease(b, p, 2, from)
		for _, pid := range processes("\x00guest=" + env.Name() + "-") {
			text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
			if err != nil {
				b.Fatal(err)
			}
			_, rest, _ := strings.Cut(string(text), "\nPss:")
			var kib int64
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				b.Fatal(err)
			}
			sum += kib << 10
		}
		end(b, env)
	}
	each := float64(sum) / float64(2*b.N)
	b.ReportMetric(each/1e6, "MB/clone")
	b.ReportMetric(each/float64(spec(1).Machines[0].Memory+overhead), "x-given")
}

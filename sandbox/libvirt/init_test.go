package libvirt

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bj/fleet"
	"bj/sandbox"
	"bj/sandbox/image"
)

// diskOf makes a disk image of a folder: qcow2, with a partition table, and an
// ext4 in the second partition.
func diskOf(t *testing.T, tree string, size int64) string {
	t.Helper()
	dir := t.TempDir()
	raw, path := filepath.Join(dir, "raw"), filepath.Join(dir, "disk.qcow2")
	const first, second = 1 << 20, 2 << 20
	mkfs := exec.Command("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", fmt.Sprintf("offset=%d", second), "-d", tree, raw, fmt.Sprint((size-second)>>10)+"k")
	f, err := os.Create(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if out, err := mkfs.CombinedOutput(); err != nil {
		t.Fatalf("making a file system: %v\n%s", err, out)
	}
	table := make([]byte, 512)
	for i, p := range [][2]int64{{first, second}, {second, size}} {
		e := table[446+16*i:]
		e[4] = 0x83
		binary.LittleEndian.PutUint32(e[8:], uint32(p[0]/512))
		binary.LittleEndian.PutUint32(e[12:], uint32((p[1]-p[0])/512))
	}
	table[510], table[511] = 0x55, 0xaa
	if _, err := f.WriteAt(table, 0); err != nil {
		t.Fatal(err)
	}
	writeQcow2(t, path, f, size)
	if err := os.Remove(raw); err != nil {
		t.Fatal(err)
	}
	return path
}

// writeQcow2 writes a disk as a qcow2 image in one piece: header, first table,
// then the clusters that are not empty and the second tables, as they come.
func writeQcow2(t *testing.T, path string, disk io.ReaderAt, size int64) {
	t.Helper()
	const cluster = 64 << 10
	const covers = cluster / 8 * cluster
	b := emptyOverlay(size)
	out, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	const used = 1 << 63 // nobody else refers to it
	next := int64(len(b))
	for l1 := int64(0); l1*covers < size; l1++ {
		table := make([]byte, cluster)
		any := false
		for l2 := range int64(cluster / 8) {
			data := make([]byte, cluster)
			if n, err := disk.ReadAt(data, l1*covers+l2*cluster); n == 0 && err != nil {
				break
			}
			if slices.Max(data) == 0 {
				continue
			}
			if _, err := out.WriteAt(data, next); err != nil {
				t.Fatal(err)
			}
			binary.BigEndian.PutUint64(table[8*l2:], uint64(next)|used)
			next, any = next+cluster, true
		}
		if any {
			if _, err := out.WriteAt(table, next); err != nil {
				t.Fatal(err)
			}
			binary.BigEndian.PutUint64(b[3*cluster+8*l1:], uint64(next)|used)
			next += cluster
		}
	}
	for i := range next / cluster {
		binary.BigEndian.PutUint16(b[2*cluster+2*i:], 1)
	}
	if _, err := out.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
}

func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// systemdImage is a small Debian with systemd, and the folder of its root.
func systemdImage(t *testing.T, p *Provider) (i *fleet.Image, r image.Root, tree string) {
	t.Helper()
	i = &fleet.Image{Name: "packages", Debian: []string{"netcat-openbsd"}, Systemd: true}
	r, err := p.opts.Images.Root(t.Context(), i, p.opts.Notice)
	if err != nil {
		t.Fatal(err)
	}
	if tree, err = p.opts.Images.Tree(t.Context(), r, p.opts.Notice); err != nil {
		t.Fatal(err)
	}
	return i, r, tree
}

// booting leases one machine that boots its own systemd, seals it, and returns it
// when systemd runs; a warm one starts from a template. It is released with the test.
func booting(t *testing.T, p *Provider, i *fleet.Image, warm bool) (sandbox.Environment, sandbox.Machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	s := spec(1)
	s.Machines[0].Image = i
	s.Machines[0].Files = []sandbox.File{
		{Path: "/etc/systemd/system/web.service", Mode: 0o644, Content: []byte("[Service]\nExecStart=/bin/sh -c 'while :; do hostname | nc -l -p 7000 -q 0; done'\nRestart=on-failure\nRestartSec=100ms\n")},
		{Path: "/etc/systemd/system/phone.service", Mode: 0o644, Content: []byte("[Service]\nType=oneshot\nExecStart=-/bin/nc -w 1 192.0.2.7 81\nExecStart=-/bin/nc -w 1 127.0.0.1 9999\n")},
	}
	from := map[string]string{}
	if warm {
		tpl, err := p.Template(ctx, s.Machines[0])
		if err != nil {
			t.Fatal(err)
		}
		from["m-0"] = t.TempDir()
		if err := p.Fill(ctx, tpl, from["m-0"]); err != nil {
			t.Fatal(err)
		}
		if left, _ := filepath.Glob(filepath.Join(overlaysDir, "*")); len(left) > 0 {
			t.Errorf("a template has left %s", left)
		}
	}
	env, err := p.LeaseFrom(ctx, s, from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := env.Release(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if found, _ := filepath.Glob(filepath.Join(overlaysDir, env.Name()+"*")); len(found) > 0 {
		t.Errorf("%s has a name while the machine runs", found)
	}
	if err := env.Seal(ctx, sandbox.Policy{Internal: []sandbox.Ports{{Protocol: "tcp", First: 7000, Last: 7000}}}); err != nil {
		t.Fatal(err)
	}
	m := env.Machines()[0]
	out, code := sh(t, m, `test "$(cat /proc/1/comm)" = systemd; test "$(hostname)" = m-0; grep -q '^Seccomp:.2' /proc/1/status
systemctl start web.service; test "$(systemctl is-active web.service)" = active; nc -w 20 m-0 7000 </dev/null; cat /etc/machine-id`)
	if code != 0 || !strings.HasPrefix(out, "m-0\n") || len(out) != 37 {
		t.Fatalf("the machine is not what was asked for: %d %s", code, out)
	}
	return env, m
}

// A root of packages is booted by its systemd under the seal; what that starts is
// watched, and can be killed.
func TestSystemd(t *testing.T) {
	startLibvirt(t)
	p := provider(t)
	packages, _, _ := systemdImage(t, p)
	env, m := booting(t, p, packages, false)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	list, err := env.Canaries(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if !c.Held {
			t.Errorf("%s: %s: %s", c.Machine, c.Probe, c.Detail)
		}
	}
	if out, code := sh(t, m, "systemctl start phone.service"); code != 0 {
		t.Errorf("starting a unit: %s", out)
	}
	// What a machine has seen is told a moment later.
	for _, to := range []string{"192.0.2.7:81", "127.0.0.1:9999"} {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
			flows, err := env.Blocked(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if slices.ContainsFunc(flows, func(f sandbox.Flow) bool {
				return f.Destination.String() == to && f.Origin != nil && f.Origin.Unit == "phone.service"
			}) {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("nobody saw phone.service try %s: %+v", to, flows)
				break
			}
		}
	}
	if n, err := m.KillUnit(ctx, "web.service"); err != nil || n == 0 {
		t.Errorf("killing web.service: %d processes, %v", n, err)
	}
	if out, code := sh(t, m, `for i in $(seq 100); do test "$(systemctl show -P NRestarts web.service)" = 1 && exit; sleep 0.1; done; systemctl status web.service; exit 1`); code != 0 {
		t.Errorf("systemd has not seen its service die: %s", out)
	}
	// A narrower policy closes, and does not start systemd again.
	if err := env.Seal(ctx, sandbox.Policy{}); err != nil {
		t.Fatal(err)
	}
	if out, code := sh(t, m, "nc -w 1 m-0 7000 </dev/null"); code == 0 {
		t.Errorf("a port that was closed says %s", out)
	}
}

// A disk that somebody else made is booted by its own systemd, from a template as
// well, and never written to.
func TestDisk(t *testing.T) {
	startLibvirt(t)
	p := provider(t)
	_, _, tree := systemdImage(t, p)
	path := diskOf(t, tree, 900<<20)
	before := sum(t, path)
	env, m := booting(t, p, &fleet.Image{Name: "disk", Disk: path + "@sha256:" + before, Systemd: true}, true)
	if !strings.Contains(env.Root(), "disk disk.qcow2, sha256:"+before[:12]) {
		t.Errorf("the verdict would name %s", env.Root())
	}
	if out, code := sh(t, m, "head -c 3000000 /dev/urandom > /var/kept; sync; grep ' / ' /proc/mounts"); code != 0 || !strings.Contains(out, "/dev/vda2 / ext4 rw") {
		t.Errorf("the root is %s", out)
	}
	if err := m.Crash(t.Context()); err != nil {
		t.Error(err)
	}
	if err := env.Release(t.Context()); err != nil {
		t.Error(err)
	}
	nothingLeft(t, p, env.Name())
	if sum(t, path) != before {
		t.Error("the disk image was written to")
	}
	if kept := filepath.Join(p.opts.Images.Dir, "blobs", before); sum(t, kept) != before {
		t.Error("the copy of the disk image was written to")
	}
}

// A disk without a Linux on it is said to be one.
func TestDiskWithoutRoot(t *testing.T) {
	startLibvirt(t)
	p := provider(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	s := spec(1)
	s.Machines[0].Image = &fleet.Image{Name: "disk", Disk: diskOf(t, t.TempDir(), 8<<20)}
	_, err := p.Lease(ctx, s)
	var e *sandbox.Error
	if !errors.As(err, &e) || e.Code != sandbox.CodeLease || e.Hint == "" || !strings.Contains(err.Error(), "the disk holds no root file system of a Linux: looked at vda1 (unknown), vda2 (ext4)") {
		t.Errorf("got %v", err)
	}
}

// What an image in use has of its own is not any machine's.
func TestForgetIdentity(t *testing.T) {
	root := t.TempDir()
	gone := []string{"etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_host_rsa_key.pub", "var/lib/systemd/random-seed", "var/lib/dbus/machine-id"}
	for _, name := range append(gone, "etc/ssh/sshd_config") {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755), os.WriteFile(filepath.Join(root, name), nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := forgetIdentity(root); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range gone {
		if _, err := os.Stat(filepath.Join(root, name)); err == nil {
			t.Errorf("%s is there still", name)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "etc/ssh/sshd_config")); err != nil {
		t.Error(err)
	}
}

func TestPartIs(t *testing.T) {
	p := part{"/dev/vda2", image.Volume{Kind: "ext4", UUID: "30313233-3435-3637-3839-616263646566", Label: "data"}}
	for spec, want := range map[string]bool{
		"UUID=30313233-3435-3637-3839-616263646566": true, `UUID="30313233-3435-3637-3839-616263646566"`: true, "/dev/disk/by-uuid/30313233-3435-3637-3839-616263646566": true,
		"LABEL=data": true, "/dev/sda2": true, "/dev/nvme0n1p2": true, "/dev/xvda2": true,
		"UUID=": false, "LABEL=": false, "LABEL=root": false, "/dev/sda1": false, "/dev/sda": false, "/dev/mapper/vg-2": false, "server:/2": false,
	} {
		if got := p.is(spec); got != want {
			t.Errorf("%s: %t", spec, got)
		}
	}
}

func TestEmptyOverlay(t *testing.T) {
	for _, size := range []int64{1 << 20, 512<<20 + 1, 16 << 40} {
		b := emptyOverlay(size)
		be := binary.BigEndian
		if got := int64(be.Uint64(b[24:])); got < size || got >= size+512 {
			t.Errorf("%d bytes became %d", size, got)
		}
		if covered := int64(be.Uint32(b[36:])) << 29; covered < size || int64(len(b)) < 3<<16+int64(be.Uint32(b[36:]))*8 {
			t.Errorf("%d bytes: the table covers %d", size, covered)
		}
		if be.Uint64(b[8:]) != 0 {
			t.Error("it names a file")
		}
	}
}

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

// Two machines boot their own systemd: one from packages, one from a disk that
// somebody else made.
func TestSystemd(t *testing.T) {
	startLibvirt(t)
	p := provider(t)
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute)
	defer cancel()
	packages := &fleet.Image{Name: "packages", Debian: []string{"netcat-openbsd"}, Systemd: true}
	root, err := p.opts.Images.Root(ctx, packages, p.opts.Notice)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := p.opts.Images.Tree(ctx, root, p.opts.Notice)
	if err != nil {
		t.Fatal(err)
	}
	path := diskOf(t, tree, 900<<20)
	before := sum(t, path)
	s := spec(2)
	s.Machines[0].Image = packages
	s.Machines[1].Image = &fleet.Image{Name: "disk", Disk: path + "@sha256:" + before, Systemd: true}
	for i := range s.Machines {
		s.Machines[i].Files = []sandbox.File{
			{Path: "/etc/systemd/system/web.service", Mode: 0o644, Content: []byte("[Service]\nExecStart=/bin/sh -c 'while :; do hostname | nc -l -p 7000 -q 0; done'\nRestart=on-failure\nRestartSec=100ms\n")},
			{Path: "/etc/systemd/system/phone.service", Mode: 0o644, Content: []byte("[Service]\nType=oneshot\nExecStart=-/bin/nc -w 1 192.0.2.7 81\nExecStart=-/bin/nc -w 1 127.0.0.1 9999\n")},
		}
	}
	env, err := p.Lease(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	defer nothingLeft(t, p, env.Name())
	defer func() {
		if err := env.Release(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
		if sum(t, path) != before {
			t.Error("the disk image was written to")
		}
	}()
	if !strings.Contains(env.Root(), "sha256:"+before[:12]) || !strings.Contains(env.Root(), root.Digest[:12]) {
		t.Errorf("the verdict would name %s", env.Root())
	}
	if found, _ := filepath.Glob(filepath.Join(overlaysDir, env.Name()+"*")); len(found) > 0 {
		t.Errorf("%s has a name while the machine runs", found)
	}
	if err := env.Seal(ctx, sandbox.Policy{Internal: []sandbox.Ports{{Protocol: "tcp", First: 7000, Last: 7000}}}); err != nil {
		t.Fatal(err)
	}
	list, err := env.Canaries(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if !c.Held {
			t.Errorf("%s: %s: %s", c.Machine, c.Probe, c.Detail)
		}
	}
	m := env.Machines()
	ids := map[string]bool{}
	for i := range m {
		out, code := sh(t, m[i], `set -e
test "$(cat /proc/1/comm)" = systemd; test "$(hostname)" = `+m[i].Name()+`
grep -q '^Seccomp:.2' /proc/1/status
systemctl start web.service; systemctl start phone.service; test "$(systemctl is-active web.service)" = active
head -c 3000000 /dev/urandom > /var/kept; sync
cat /etc/machine-id`)
		if code != 0 || len(out) != 33 || ids[out] {
			t.Fatalf("%s: %d %s", m[i].Name(), code, out)
		}
		ids[out] = true
	}
	if out, _ := sh(t, m[1], "grep ' / ' /proc/mounts"); !strings.Contains(out, "/dev/vda2 / ext4 rw") {
		t.Errorf("the disk's root is %s", out)
	}
	for i, want := range []string{"m-1\n", "m-0\n"} {
		if out, _ := sh(t, m[i], "nc -w 20 "+strings.TrimSpace(want)+" 7000 </dev/null"); out != want {
			t.Errorf("the service of %s says %q", strings.TrimSpace(want), out)
		}
	}
	flows, err := env.Blocked(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"m-0", "m-1"} {
		for _, to := range []string{"192.0.2.7:81", "127.0.0.1:9999"} {
			if !slices.ContainsFunc(flows, func(f sandbox.Flow) bool {
				return f.Machine == name && f.Destination.String() == to && f.Origin != nil && f.Origin.Unit == "phone.service"
			}) {
				t.Errorf("nobody saw phone.service of %s try %s: %+v", name, to, flows)
			}
		}
	}
	if n, err := m[0].KillUnit(ctx, "web.service"); err != nil || n == 0 {
		t.Errorf("killing web.service: %d processes, %v", n, err)
	}
	if out, code := sh(t, m[0], `for i in $(seq 100); do test "$(systemctl show -P NRestarts web.service)" = 1 && exit; sleep 0.1; done; systemctl status web.service; exit 1`); code != 0 {
		t.Errorf("systemd has not seen its service die: %s", out)
	}
	// A narrower policy does not start systemd again.
	if err := env.Seal(ctx, sandbox.Policy{}); err != nil {
		t.Fatal(err)
	}
	if out, code := sh(t, m[0], "nc -w 1 m-1 7000 </dev/null"); code == 0 {
		t.Errorf("a port that was closed says %s", out)
	}
	if err := m[1].Crash(ctx); err != nil {
		t.Error(err)
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

package image

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bj/sandbox"
)

// qcow2Header is a header of an image of 4 MiB that is in one piece; change
// changes it.
func qcow2Header(change func(b []byte)) []byte {
	b := make([]byte, 1<<16)
	copy(b, "QFI\xfb")
	binary.BigEndian.PutUint32(b[4:], 3)
	binary.BigEndian.PutUint32(b[20:], 16)
	binary.BigEndian.PutUint64(b[24:], 4<<20)
	binary.BigEndian.PutUint32(b[100:], 104)
	if change != nil {
		change(b)
	}
	return b
}

// rawDisk is a raw image with an ext4's magic.
func rawDisk() []byte {
	b := make([]byte, 2<<20)
	copy(b[0x438:], "\x53\xef")
	copy(b[0x468:], "0123456789abcdef")
	copy(b[0x478:], "root")
	return b
}

func TestDiskRefused(t *testing.T) {
	be := binary.BigEndian
	for _, c := range []struct {
		name    string
		content []byte
		want    string // of the error
		hint    string
	}{
		{"backing", qcow2Header(func(b []byte) { be.PutUint64(b[8:], 512); be.PutUint32(b[16:], 11); copy(b[512:], "/etc/shadow") }), "not in one piece: it has a backing file", "qemu-img convert"},
		{"backing offset alone", qcow2Header(func(b []byte) { be.PutUint64(b[8:], 512) }), "not in one piece", "qemu-img convert"},
		{"data file", qcow2Header(func(b []byte) { be.PutUint64(b[72:], 1<<2) }), "its data is in another file", "qemu-img convert"},
		{"corrupt", qcow2Header(func(b []byte) { be.PutUint64(b[72:], 1<<1) }), "marked as corrupt: qemu-img check", ""},
		{"encrypted", qcow2Header(func(b []byte) { be.PutUint32(b[32:], 2) }), "is encrypted", ""},
		{"version", qcow2Header(func(b []byte) { be.PutUint32(b[4:], 9) }), "qcow2 of version 9", ""},
		{"huge", qcow2Header(func(b []byte) { be.PutUint64(b[24:], 1<<62) }), "between 1 MiB and 16 TiB", ""},
		{"cut off", qcow2Header(nil)[:80], "cut off", ""},
		{"empty", nil, "no disk image", "qcow2 or raw image"},
		{"text", []byte(strings.Repeat("no disk\n", 1<<18)), "no disk image", "qcow2 or raw image"},
		{"small", append(make([]byte, 510), 0x55, 0xaa), "between 1 MiB", ""},
		{"vmdk", append([]byte("KDMV"), make([]byte, 1<<20)...), "is VMDK", ""},
		{"gzip", append([]byte("\x1f\x8b"), make([]byte, 1<<20)...), "is compressed", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &Store{Dir: t.TempDir(), Workspace: t.TempDir()}
			if err := os.WriteFile(filepath.Join(s.Workspace, "disk"), c.content, 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, err := s.disk(t.Context(), &sandbox.Image{Name: "i", Disk: "disk"}, func(string) {})
			var e *sandbox.Error
			if !errors.As(err, &e) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "image i: ") {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if e.Code != sandbox.CodeLease || !strings.Contains(e.Hint, c.hint) || e.Hint == "" {
				t.Errorf("code %s, hint %q", e.Code, e.Hint)
			}
			if blobs, _ := os.ReadDir(filepath.Join(s.Dir, "blobs")); len(blobs) > 0 {
				t.Error("it was copied")
			}
		})
	}
}

func TestDiskMissing(t *testing.T) {
	s := &Store{Dir: t.TempDir(), Workspace: t.TempDir()}
	for path, want := range map[string]string{"none": "there is no file", "/dev/null": "is not a file", ".": "is not a file"} {
		_, _, err := s.disk(t.Context(), &sandbox.Image{Name: "i", Disk: path}, nil)
		if err == nil || !strings.Contains(err.Error(), want) || sandbox.AsError(err, sandbox.CodeLeak).Hint == "" {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// A disk is kept by what it holds, and looked at again when it has changed.
func TestDiskKept(t *testing.T) {
	s := &Store{Dir: t.TempDir(), Workspace: t.TempDir()}
	path := filepath.Join(s.Workspace, "disk")
	content := rawDisk()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	copies := 0
	disk := func(name string) (Disk, string, error) {
		return s.disk(t.Context(), &sandbox.Image{Name: "i", Disk: name}, func(string) { copies++ })
	}
	d, about, err := disk("disk")
	if err != nil {
		t.Fatal(err)
	}
	digest, err := fileDigest(path)
	if err != nil {
		t.Fatal(err)
	}
	if d != (Disk{Path: s.blob(digest), Format: "raw", Whole: true, Size: 2 << 20}) || about != "disk disk, sha256:"+digest[:12] {
		t.Errorf("%+v, %s", d, about)
	}
	if kept, err := fileDigest(d.Path); err != nil || kept != digest {
		t.Errorf("the copy has the digest %s, %v", kept, err)
	}
	if _, _, err := disk("disk@sha256:" + digest); err != nil || copies != 1 {
		t.Errorf("with its digest: %v, copied %d times", err, copies)
	}
	if _, _, err := disk("disk@sha256:" + strings.Repeat("0", 64)); err == nil || !strings.Contains(err.Error(), "has the digest sha256:"+digest+", and not") {
		t.Errorf("with another digest: %v", err)
	}
	// The same size and time, and other bytes.
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	content[1<<20] = 1
	deadline := time.Now().Add(10 * time.Second)
	for { // the clock of a file system ticks slowly
		if err := errors.Join(os.WriteFile(path, content, 0o600), os.Chtimes(path, st.ModTime(), st.ModTime())); err != nil {
			t.Fatal(err)
		}
		now, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if stamp(now) != stamp(st) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the file's times do not change")
		}
	}
	changed, _, err := disk("disk")
	if err != nil || changed.Path == d.Path {
		t.Errorf("changed: %+v, %v", changed, err)
	}
}

func TestCopySparse(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "from"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 5 << 20
	for _, at := range []int64{0, 3<<20 + 17} {
		if _, err := f.WriteAt([]byte("here"), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := copySparse(t.Context(), filepath.Join(dir, "to"), f, size); err != nil {
		t.Fatal(err)
	}
	from, err1 := fileDigest(f.Name())
	to, err2 := fileDigest(filepath.Join(dir, "to"))
	if err1 != nil || err2 != nil || from != to {
		t.Errorf("the copy differs: %v %v", err1, err2)
	}
}

func TestReadVolume(t *testing.T) {
	at := func(offset int, magic string, more map[int]string) []byte {
		b := make([]byte, volumeHead+4096)
		copy(b[offset:], magic)
		for o, s := range more {
			copy(b[o:], s)
		}
		return b
	}
	const id, id16 = "30313233-3435-3637-3839-616263646566", "0123456789abcdef"
	for want, b := range map[Volume][]byte{
		{"ext4", id, "root"}:         rawDisk(),
		{"xfs", id, "data"}:          at(0, "XFSB", map[int]string{32: id16, 108: "data"}),
		{"btrfs", id, "b"}:           at(0x10040, "_BHRfS_M", map[int]string{0x10020: id16, 0x1012b: "b"}),
		{"vfat", "4433-2211", "EFI"}: at(82, "FAT32   ", map[int]string{510: "\x55\xaa", 67: "\x11\x22\x33\x44", 71: "EFI        "}),
		{"swap", id, "s"}:            at(4086, "SWAPSPACE2", map[int]string{1036: id16, 1052: "s"}),
		{Kind: "lvm"}:                at(0x200, "LABELONE", nil),
		{Kind: "luks"}:               at(0, "LUKS\xba\xbe", nil),
		{Kind: "squashfs"}:           at(0, "hsqs", nil),
		{Kind: "partitions"}:         at(510, "\x55\xaa", map[int]string{0x200: "EFI PART"}),
		{}:                           at(0, "nothing", nil),
	} {
		if got := ReadVolume(strings.NewReader(string(b))); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		ReadVolume(strings.NewReader(string(b[:700]))) // cut off
	}
}

// No two machines share what an image has of its own.
func TestWithoutIdentity(t *testing.T) {
	var in, out bytes.Buffer
	w := tar.NewWriter(&in)
	for _, name := range []string{"etc/ssh/sshd_config", "./etc/ssh/ssh_host_rsa_key", "/etc/ssh/ssh_host_rsa_key.pub", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "etc/last"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: 4, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}); err != nil {
			t.Fatal(err)
		}
		w.Write([]byte("text"))
	}
	if err := errors.Join(w.Close(), withoutIdentity(&out, &in)); err != nil {
		t.Fatal(err)
	}
	var left []string
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		if text, err := io.ReadAll(r); err != nil || string(text) != "text" || h.PAXRecords["SCHILY.xattr.user.a"] != "b" || h.Mode != 0o600 {
			t.Errorf("%s is %q, %+v: %v", h.Name, text, h, err)
		}
		left = append(left, h.Name)
	}
	if !slices.Equal(left, []string{"etc/ssh/sshd_config", "etc/last"}) {
		t.Errorf("left are %q", left)
	}
}

// What boots by systemd has it.
func TestHasSystemd(t *testing.T) {
	for want, links := range map[string]map[string]string{
		"":                     {"sbin": "usr/sbin", "usr/sbin/init": "/lib/systemd/systemd", "lib": "usr/lib"},
		"it has no /sbin/init": {"sbin": "usr/sbin"},
		"and not systemd":      {"sbin": "usr/sbin", "usr/sbin/init": "/usr/lib/systemd/other"},
	} {
		file := filepath.Join(t.TempDir(), "root.tar")
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for name, to := range links {
			w.WriteHeader(&tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink})
		}
		for _, name := range []string{"usr/lib/systemd/systemd", "usr/lib/systemd/other"} {
			w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Typeflag: tar.TypeReg})
		}
		if err := errors.Join(w.Close(), os.WriteFile(file, b.Bytes(), 0o600)); err != nil {
			t.Fatal(err)
		}
		if err := hasSystemd(file); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func FuzzDisk(f *testing.F) {
	f.Add(qcow2Header(nil))
	f.Add(rawDisk()[:4096])
	f.Fuzz(func(t *testing.T, b []byte) {
		ReadVolume(strings.NewReader(string(b)))
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		d, err := readDisk(file)
		if err == nil && d.Format == "qcow2" && (binary.BigEndian.Uint64(b[8:]) != 0 || binary.BigEndian.Uint32(b[16:]) != 0) {
			t.Error("an image with a backing file was let through")
		}
	})
}

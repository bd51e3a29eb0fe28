package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// A disk image is a file that somebody else made and may change: the store keeps
// a copy, by what it holds. Machines run on that, and nobody opens the image
// itself while they do. Once copied, an image is known by its size and times.

// disk returns the disk of an image, in the store, and how a verdict names it.
func (s *Store) disk(ctx context.Context, i *sandbox.Image, progress func(string)) (Disk, string, error) {
	file, want, given := strings.Cut(i.Disk, "@sha256:")
	if !filepath.IsAbs(file) {
		file = filepath.Join(s.Workspace, file)
	}
	wrong := func(err error, words string) (Disk, string, error) {
		return Disk{}, "", hint(fmt.Errorf("image %s: %w", i.Name, err), words)
	}
	f, err := os.Open(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return wrong(fmt.Errorf("there is no file %s", file), "disk = names a qcow2 or raw image, relative to the package or absolute")
	case err != nil:
		return wrong(fmt.Errorf("reading the disk: %w", err), "let the user who runs bj read it")
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Disk{}, "", err
	}
	if !st.Mode().IsRegular() {
		return wrong(fmt.Errorf("%s is not a file", file), "disk = names a qcow2 or raw image: copy a device to a file first")
	}
	// Before it is copied, for the sake of whoever waits.
	if _, err := readDisk(f); err != nil {
		return wrong(fmt.Errorf("%s: %w", file, err), diskHint(err, file))
	}
	key := fmt.Sprintf("disk 1 of %s, %d bytes, %s", file, st.Size(), stamp(st))
	m, ok := s.lookup(key)
	if !ok {
		m, err = s.cached(ctx, key, progress, func(work string) (made, error) {
			progress(fmt.Sprintf("copying %s, %s", file, megabytes(st.Size())))
			tmp := filepath.Join(work, "disk")
			if err := copySparse(ctx, tmp, f, st.Size()); err != nil {
				return made{}, fmt.Errorf("copying %s: %w", file, err)
			}
			now, err := f.Stat()
			if err != nil {
				return made{}, err
			}
			if stamp(now) != stamp(st) || now.Size() != st.Size() {
				return made{}, hint(fmt.Errorf("%s has changed while it was copied", file), "end the machine that runs on it first")
			}
			return s.keepData(tmp, "disk "+filepath.Base(file))
		})
	}
	if err != nil {
		e := sandbox.AsError(err, sandbox.CodeLease)
		return Disk{}, "", &sandbox.Error{Code: e.Code, Err: fmt.Errorf("image %s: %w", i.Name, err), Hint: e.Hint}
	}
	if given && want != m.Digest {
		return wrong(fmt.Errorf("%s has the digest sha256:%s, and not sha256:%s", file, m.Digest, want), "it is another image, or a damaged copy")
	}
	// What is in the store is what counts.
	kept, err := os.Open(s.source(m))
	if err != nil {
		return Disk{}, "", err
	}
	defer kept.Close()
	d, err := readDisk(kept)
	if err != nil {
		return wrong(fmt.Errorf("%s: %w", file, err), diskHint(err, file))
	}
	d.Path = s.source(m)
	return d, fmt.Sprintf("disk %s, sha256:%s", filepath.Base(file), m.Digest[:12]), s.touch(m.Digest)
}

// stamp changes whenever a file is written.
func stamp(st fs.FileInfo) string {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return st.ModTime().String()
	}
	return fmt.Sprintf("inode %d:%d, changed %d.%09d", sys.Dev, sys.Ino, sys.Ctim.Sec, sys.Ctim.Nsec)
}

// errPieces is of an image that is not in one piece: a part of it is read from
// wherever its header says, which may be any file of the host.
var errPieces = errors.New("is not in one piece")

func diskHint(err error, file string) string {
	if errors.Is(err, errPieces) {
		return fmt.Sprintf("put it together: qemu-img convert -O qcow2 %s whole.qcow2", file)
	}
	return "disk = names a qcow2 or raw image of a whole disk, or of its root file system"
}

// readDisk says what an image is, without Path, and refuses what a machine could
// not run on, or what would have the emulator open other files.
func readDisk(f *os.File) (Disk, error) {
	st, err := f.Stat()
	if err != nil {
		return Disk{}, err
	}
	head := make([]byte, 112)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Disk{}, fmt.Errorf("reading it: %w", err)
	}
	head = head[:n]
	for magic, name := range map[string]string{
		"KDMV": "VMDK", "# Disk DescriptorFile": "VMDK", "conectix": "VHD", "vhdxfile": "VHDX", "<<< ": "VDI", "QED\x00": "QED",
		"\x1f\x8b": "compressed", "\xfd7zXZ\x00": "compressed", "\x28\xb5\x2f\xfd": "compressed", "BZh": "compressed",
	} {
		if strings.HasPrefix(string(head), magic) {
			return Disk{}, fmt.Errorf("is %s: neither qcow2 nor raw", name)
		}
	}
	d := Disk{Whole: true, Format: "raw", Size: st.Size()}
	if strings.HasPrefix(string(head), "QFI\xfb") {
		d.Format = "qcow2"
		d.Size, err = readQcow2(head)
	} else if v := ReadVolume(f); v.Kind == "" {
		err = errors.New("is no disk image: it has neither a qcow2 header nor partitions nor a file system")
	}
	if err == nil && (d.Size < 1<<20 || d.Size > maxDisk) {
		err = fmt.Errorf("is of %d bytes, and disks have between 1 MiB and 16 TiB", d.Size)
	}
	return d, err
}

// maxDisk bounds a disk, in bytes.
const maxDisk = 16 << 40

// readQcow2 reads the header of a qcow2 image: docs/interop/qcow2.txt of QEMU. It
// returns the size of the disk in bytes.
func readQcow2(head []byte) (int64, error) {
	if len(head) < 72 {
		return 0, errors.New("is cut off within its qcow2 header")
	}
	be := binary.BigEndian
	switch version := be.Uint32(head[4:]); {
	case version != 2 && version != 3:
		return 0, fmt.Errorf("is qcow2 of version %d, and 2 and 3 are known", version)
	case version == 3 && len(head) < 104:
		return 0, errors.New("is cut off within its qcow2 header")
	case version == 3 && be.Uint64(head[72:])&(1<<2) != 0:
		return 0, fmt.Errorf("%w: its data is in another file (data_file)", errPieces)
	case version == 3 && be.Uint64(head[72:])&(1<<1) != 0:
		return 0, errors.New("is marked as corrupt: qemu-img check -r all mends it")
	}
	if be.Uint64(head[8:]) != 0 || be.Uint32(head[16:]) != 0 {
		return 0, fmt.Errorf("%w: it has a backing file", errPieces)
	}
	if be.Uint32(head[32:]) != 0 {
		return 0, errors.New("is encrypted")
	}
	size := be.Uint64(head[24:])
	if size > maxDisk {
		size = maxDisk + 1
	}
	return int64(size), nil
}

// copySparse copies a file, sharing its blocks where the file system can, and
// else without its holes.
func copySparse(ctx context.Context, to string, from *os.File, size int64) error {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	if unix.IoctlFileClone(int(out.Fd()), int(from.Fd())) == nil {
		return out.Close()
	}
	if err := out.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // nothing but a hole
		}
		end := size
		if err == nil {
			end, err = unix.Seek(int(from.Fd()), start, unix.SEEK_HOLE)
		} else if errors.Is(err, unix.EINVAL) {
			start, err = at, nil // no holes on this file system
		}
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, start), stopReader{ctx, io.NewSectionReader(from, start, end-start)}); err != nil {
			return err
		}
		at = end
	}
	return out.Close()
}

package libvirt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A machine that runs on a disk of somebody else's writes to an overlay of its
// own: a qcow2 image that holds what differs. Its name is the domain's. It loses
// that as soon as QEMU has it open, before the machine runs, so that it is gone
// with QEMU, however that ends. Only a template's, to which nothing is written,
// keeps it until the template is saved.

// overlaysDir holds overlays for the moment that they have a name.
const overlaysDir = "/var/lib/bj/disks"

// overlayPath is of a domain's disk.
func overlayPath(domain string) string { return filepath.Join(overlaysDir, domain+".qcow2") }

// makeOverlay makes one for a machine that runs on a disk of others, and returns
// what takes its name away.
func (p plan) makeOverlay() (unlink func(), err error) {
	if !p.boot.Disk.Whole {
		return func() {}, nil
	}
	path := overlayPath(p.domain())
	if err := os.MkdirAll(overlaysDir, 0o755); err != nil {
		return nil, fmt.Errorf("making the folder of overlays: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making an overlay: %w", err)
	}
	_, err = f.Write(emptyOverlay(p.boot.Disk.Size))
	if err := errors.Join(err, f.Chown(p.uid, p.gid), f.Close()); err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("making an overlay: %w", err)
	}
	return func() { os.Remove(path) }, nil
}

// emptyOverlay returns a qcow2 image of that many bytes in which nothing was
// written yet: docs/interop/qcow2.txt of QEMU. What it lies over is told to QEMU,
// not written here.
func emptyOverlay(size int64) []byte {
	const cluster = 64 << 10
	const perTable = cluster / 8 * cluster // bytes that an entry of the first table covers
	size = (size + 511) &^ 511
	entries := (size + perTable - 1) / perTable
	tables := (entries*8 + cluster - 1) / cluster
	b := make([]byte, (3+tables)*cluster)
	be := binary.BigEndian
	copy(b, "QFI\xfb")
	be.PutUint32(b[4:], 3)                // version
	be.PutUint32(b[20:], 16)              // bits of a cluster's size
	be.PutUint64(b[24:], uint64(size))    //
	be.PutUint32(b[36:], uint32(entries)) // of the first table
	be.PutUint64(b[40:], 3*cluster)       // where it is
	be.PutUint64(b[48:], cluster)         // the table of reference counts
	be.PutUint32(b[56:], 1)               // and its clusters
	be.PutUint32(b[96:], 4)               // 16 bits for a count
	be.PutUint32(b[100:], 104)            // length of this header
	be.PutUint64(b[cluster:], 2*cluster)  // the only block of counts
	for i := range 3 + tables {
		be.PutUint16(b[2*cluster+2*i:], 1)
	}
	return b
}

// removeOverlays removes those of a lease, and those that a host which went down
// has left.
func removeOverlays(lease string) error {
	entries, err := os.ReadDir(overlaysDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading %s: %w", overlaysDir, err)
	}
	var errs []error
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !strings.HasPrefix(e.Name(), lease+"-") && time.Since(info.ModTime()) < time.Hour {
			continue
		}
		if err := os.Remove(filepath.Join(overlaysDir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("removing an overlay: %w", err))
		}
	}
	return errors.Join(errs...)
}

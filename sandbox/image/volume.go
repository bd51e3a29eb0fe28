package image

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io"
	"strings"
)

// Volume is what a disk, or a part of one, says at its beginning that it holds.
type Volume struct {
	// Kind is "ext4" (which stands for ext2 and ext3 as well), "xfs", "btrfs",
	// "squashfs", "vfat", "swap", "lvm", "luks", "partitions", or empty for what
	// is not known here.
	Kind  string
	UUID  string // as /etc/fstab writes it; empty where there is none
	Label string
}

// volumeHead is how much of a volume is looked at, in bytes.
const volumeHead = 68 << 10

// ReadVolume looks at the beginning of r. What cannot be read holds nothing.
func ReadVolume(r io.ReaderAt) Volume {
	head := make([]byte, volumeHead)
	n, _ := r.ReadAt(head, 0)
	has := func(at int, magic string) bool { return at+len(magic) <= n && string(head[at:at+len(magic)]) == magic }
	text := func(at, size int) string {
		s, _, _ := bytes.Cut(head[at:at+size], []byte{0})
		return strings.TrimRight(string(s), " ")
	}
	switch {
	case has(0x438, "\x53\xef"):
		return Volume{"ext4", uuid(head[0x468:]), text(0x478, 16)}
	case has(0, "XFSB"):
		return Volume{"xfs", uuid(head[32:]), text(108, 12)}
	case has(0x10040, "_BHRfS_M"):
		return Volume{"btrfs", uuid(head[0x10020:]), text(0x1012b, 256)}
	case has(0, "hsqs"):
		return Volume{Kind: "squashfs"}
	case has(4086, "SWAPSPACE2"):
		return Volume{"swap", uuid(head[1036:]), text(1052, 16)}
	case has(0x200, "LABELONE"):
		return Volume{Kind: "lvm"}
	case has(0, "LUKS\xba\xbe"):
		return Volume{Kind: "luks"}
	case has(82, "FAT32"):
		return Volume{"vfat", serial(head[67:]), text(71, 11)}
	case has(54, "FAT1"):
		return Volume{"vfat", serial(head[39:]), text(43, 11)}
	case has(0x200, "EFI PART") || has(510, "\x55\xaa"):
		return Volume{Kind: "partitions"}
	}
	return Volume{}
}

func uuid(b []byte) string {
	s := hex.EncodeToString(b[:16])
	return strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-")
}

// serial is the number of a FAT volume, as /etc/fstab writes it.
func serial(b []byte) string {
	s := strings.ToUpper(hex.EncodeToString(binary.BigEndian.AppendUint32(nil, binary.LittleEndian.Uint32(b))))
	return s[:4] + "-" + s[4:]
}

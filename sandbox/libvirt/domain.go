package libvirt

import (
	"encoding/xml"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"libvirt.org/go/libvirtxml"

	"bj/sandbox/hub"
	"bj/sandbox/image"
)

// overhead is the memory that a machine has beside what was asked for, in
// bytes: its kernel's own, and the agent's.
const overhead = 192 << 20

// metadata is what a domain says of its lease, for people and for reaping.
type metadata struct {
	XMLName xml.Name `xml:"https://bj.invalid/lease lease"`
	Name    string   `xml:"name,attr"`
	State   string   `xml:"state,attr"` // folder of the lease's record
	Owner   string   `xml:"owner,attr"`
}

// plan is one machine, before it is made.
type plan struct {
	lease   metadata
	name    string // host name, for people
	index   int
	cpus    int
	memory  int64 // bytes, without overhead
	boot    image.Boot
	layers  []string // squashfs disks, laid over the root
	folder  string   // of its sockets and console
	kvm     bool
	network bool
	uid     int
	gid     int
}

// domain is its name for libvirt, QEMU and the kernel (of its tap).
func (p plan) domain() string { return fmt.Sprintf("%s-%d", p.lease.Name, p.index) }

func (p plan) mac() net.HardwareAddr { return hub.HardwareAddr(p.lease.Name, p.index) }

func (p plan) port(name string) string {
	return filepath.Join(p.folder, fmt.Sprintf("%d-%s", p.index, name))
}

func (p plan) console() string { return p.port("console") }

// xml returns the domain as libvirt takes it. A transient domain leaves nothing
// behind when it ends, and every way to end is its end.
func (p plan) xml() (string, error) {
	note, err := xml.Marshal(p.lease)
	if err != nil {
		return "", err
	}
	kind := "qemu"
	cpu := &libvirtxml.DomainCPU{Mode: "maximum"}
	if p.kvm {
		kind, cpu = "kvm", &libvirtxml.DomainCPU{Mode: "host-passthrough"}
	}
	disk := func(i int, path, format string) libvirtxml.DomainDisk {
		return libvirtxml.DomainDisk{
			Device:   "disk",
			Driver:   &libvirtxml.DomainDiskDriver{Name: "qemu", Type: format},
			Source:   &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: path}},
			Target:   &libvirtxml.DomainDiskTarget{Dev: "vd" + string(rune('a'+i)), Bus: "virtio"},
			ReadOnly: &libvirtxml.DomainDiskReadOnly{},
		}
	}
	disks := []libvirtxml.DomainDisk{disk(0, p.boot.Disk.Path, p.boot.Disk.Format)}
	if p.boot.Disk.Whole {
		// What lies below is named here, so that nobody looks for it in the files.
		disks[0].BackingStore = &libvirtxml.DomainDiskBackingStore{
			Format: &libvirtxml.DomainDiskFormat{Type: p.boot.Disk.Format}, Source: disks[0].Source,
			BackingStore: &libvirtxml.DomainDiskBackingStore{},
		}
		// A machine does not outlive its overlay, so nothing need reach the disk;
		// and where that is full the machine is told, rather than stopped.
		disks[0].Driver = &libvirtxml.DomainDiskDriver{Name: "qemu", Type: "qcow2", Cache: "unsafe", ErrorPolicy: "report", Discard: "unmap"}
		disks[0].Source, disks[0].ReadOnly = overlaySource(p), nil
	}
	for i, path := range p.layers {
		disks = append(disks, disk(i+1, path, "raw"))
	}
	channel := func(name string) libvirtxml.DomainChannel {
		return libvirtxml.DomainChannel{
			Source: &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{Mode: "bind", Path: p.port(name)}},
			Target: &libvirtxml.DomainChannelTarget{VirtIO: &libvirtxml.DomainChannelTargetVirtIO{Name: name}},
		}
	}
	d := &libvirtxml.Domain{
		Type:     kind,
		Name:     p.domain(),
		Title:    strings.TrimSpace(p.lease.Owner + " " + p.name),
		Metadata: &libvirtxml.DomainMetadata{XML: string(note)},
		Memory:   &libvirtxml.DomainMemory{Value: uint((p.memory + overhead) >> 10), Unit: "KiB"},
		VCPU:     &libvirtxml.DomainVCPU{Value: uint(max(p.cpus, 1))},
		OS: &libvirtxml.DomainOS{
			Type:    &libvirtxml.DomainOSType{Arch: machineArch, Machine: machineType, Type: "hvm"},
			Kernel:  p.boot.Kernel,
			Initrd:  p.boot.Initramfs,
			Cmdline: strings.Join(append([]string{"console=" + image.Console()}, p.boot.Cmdline...), " "),
		},
		Features:   &libvirtxml.DomainFeatureList{ACPI: &libvirtxml.DomainFeature{}},
		CPU:        cpu,
		Clock:      &libvirtxml.DomainClock{Offset: "utc"},
		OnPoweroff: "destroy", OnReboot: "destroy", OnCrash: "destroy",
		// QEMU runs under an account that owns nothing, and libvirt changes no
		// owner of any file: images are everybody's to read and nobody's to write.
		SecLabel: []libvirtxml.DomainSecLabel{{Type: "static", Model: "dac", Relabel: "no", Label: fmt.Sprintf("+%d:+%d", p.uid, p.gid)}},
		Devices: &libvirtxml.DomainDeviceList{
			Disks:       disks,
			Controllers: []libvirtxml.DomainController{{Type: "usb", Model: "none"}},
			Channels:    []libvirtxml.DomainChannel{channel(controlPort), channel(agentPort)},
			Serials: []libvirtxml.DomainSerial{{
				Source: &libvirtxml.DomainChardevSource{File: &libvirtxml.DomainChardevSourceFile{Path: p.console()}},
			}},
			RNGs: []libvirtxml.DomainRNG{{
				Model:   "virtio",
				Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}},
			}},
			MemBalloon: &libvirtxml.DomainMemBalloon{Model: "none"},
		},
	}
	if p.network {
		d.Devices.Interfaces = []libvirtxml.DomainInterface{{
			MAC:    &libvirtxml.DomainInterfaceMAC{Address: p.mac().String()},
			Source: &libvirtxml.DomainInterfaceSource{Ethernet: &libvirtxml.DomainInterfaceSourceEthernet{}},
			Target: &libvirtxml.DomainInterfaceTarget{Dev: p.domain(), Managed: "no"},
			Model:  &libvirtxml.DomainInterfaceModel{Type: "virtio"},
		}}
	}
	if asksMuch != "" {
		d.QEMUCapabilities = &libvirtxml.DomainQEMUCapabilities{Del: []libvirtxml.DomainQEMUCapabilitiesEntry{{Name: asksMuch}}}
	}
	return d.Marshal()
}

func overlaySource(p plan) *libvirtxml.DomainDiskSource {
	return &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: overlayPath(p.domain())}}
}

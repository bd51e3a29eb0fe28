package libvirt

const (
	machineArch = "x86_64"
	machineType = "q35"

	emulatorPackage = "qemu-system-x86" // of Debian

	// asksMuch is an ability of QEMU that libvirt does not use for machines of bj.
	// By it libvirt reads, before a machine may run, each of some 400 properties of
	// its processor, one question at a time; without it the same is in the words of
	// CPUID, one question. A processor is the host's own or all that QEMU emulates,
	// so that there is nothing to compare it with.
	asksMuch = "cpu-unavailable-features"
)

package libvirt

const (
	machineArch = "x86_64"
	machineType = "q35"

	emulatorPackage = "qemu-system-x86" // of Debian
)

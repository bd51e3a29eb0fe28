package libvirt

const (
	machineArch = "aarch64"
	machineType = "virt"

	emulatorPackage = "qemu-system-arm" // of Debian

	asksMuch = "" // see arch_amd64.go
)

package libvirt

const (
	machineArch = "x86_64"
	machineType = "q35"
)

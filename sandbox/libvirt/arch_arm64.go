package libvirt

const (
	machineArch = "aarch64"
	machineType = "virt"
)

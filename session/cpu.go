package session

import "golang.org/x/sys/cpu"

// noHardwareAES reports whether AES-GCM would run in plain code, which is slow
// and whose timing may depend on the key.
func noHardwareAES() bool {
	amd64 := cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ
	arm64 := cpu.ARM64.HasAES && cpu.ARM64.HasPMULL
	s390x := cpu.S390X.HasAES && cpu.S390X.HasGHASH
	return !amd64 && !arm64 && !s390x
}

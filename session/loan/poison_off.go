//go:build !poison

package loan

const poisoning = false

//go:build poison

package loan

const poisoning = true

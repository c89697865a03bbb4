package session

import "github.com/sealane/sealane/session/container"

// The rules of this package (SPEC.md section 6 lists them all).
const (
	// RuleKey: an X25519 key that no honest node has: low order, not reduced,
	// high bit set, or the receiver's own.
	RuleKey Rule = "handshake-key"
	// RuleSeal: a handshake message does not authenticate.
	RuleSeal Rule = "handshake-seal"
	// RuleKEM: an ML-KEM encapsulation key that is not one.
	RuleKEM Rule = "handshake-kem"
	// RuleReplay: a message 1 that was accepted before.
	RuleReplay Rule = "handshake-replay"
	// RuleOffer: an offer that is not in its one form.
	RuleOffer Rule = "handshake-offer"
	// RuleChoice: a choice that is not in its one form or was not offered.
	RuleChoice Rule = "handshake-choice"
	// RuleCommon: no version, cipher or transform in common.
	RuleCommon Rule = "handshake-common"
	// RulePlaceholder: the iv of message 3 is not zero.
	RulePlaceholder Rule = "handshake-iv"
	// RuleClaims: message 3 has another length, or claims that no ext allows.
	RuleClaims Rule = "handshake-claims"

	// RulePackedLength: a packed record's length is outside its bounds.
	RulePackedLength Rule = "packed-length"
	// RuleGzipHeader: the gzip member does not start with its one header.
	RuleGzipHeader Rule = "gzip-header"
	// RuleGzipData: not a DEFLATE stream.
	RuleGzipData Rule = "gzip-data"
	// RuleGzipEnd: the gzip member was finished.
	RuleGzipEnd Rule = "gzip-end"
	// RuleGzipRatio: far more or far less comes out than went in.
	RuleGzipRatio Rule = "gzip-ratio"

	// RuleNumber: an iv that is not the next record number.
	RuleNumber Rule = "record-number"
	// RuleLimit: a key sealed more records than it may.
	RuleLimit Rule = "record-limit"
	// RuleOpen: a record does not authenticate.
	RuleOpen Rule = "record-open"
	// RuleType: an unknown record type.
	RuleType Rule = "record-type"
	// RuleRecordLength: a record's length field or size does not fit its type or
	// the padding.
	RuleRecordLength Rule = "record-length"
	// RulePadding: a padding byte is not zero.
	RulePadding Rule = "record-padding"
	// RuleControl: a control record where none belongs, or with another body.
	RuleControl Rule = "record-control"
	// RuleRekey: too many rekeys in a row.
	RuleRekey Rule = "record-rekey"
	// RuleClose: bytes after the sealed close.
	RuleClose Rule = "record-close"
)

// Rules lists the rules of this package.
func Rules() []Rule {
	return []Rule{
		RuleKey, RuleSeal, RuleKEM, RuleReplay, RuleOffer, RuleChoice, RuleCommon, RulePlaceholder, RuleClaims,
		RulePackedLength, RuleGzipHeader, RuleGzipData, RuleGzipEnd, RuleGzipRatio,
		RuleNumber, RuleLimit, RuleOpen, RuleType, RuleRecordLength, RulePadding, RuleControl, RuleRekey, RuleClose,
	}
}

func violation(rule Rule, detail string) error {
	return &container.Violation{Rule: rule, Detail: detail}
}

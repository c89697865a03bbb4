package container

// A Rule is the name of one law of the wire (SPEC.md section 6). Names are
// stable: they are metric labels and appear in logs.
type Rule string

// A Violation is the error for bytes that do not belong on a link. It ends the
// link; no byte of the offending text reaches an app.
type Violation struct {
	Rule Rule
	// Detail says what was wrong in words. It never holds bytes from the wire.
	Detail string
}

func (v *Violation) Error() string {
	return "violation of " + string(v.Rule) + ": " + v.Detail
}

// The rules of this package.
const (
	// RuleForm: a constant part of a text differs, or something stands
	// between two texts.
	RuleForm Rule = "container-form"
	// RuleKind: a legal kind of text where the state wants another kind.
	RuleKind Rule = "container-kind"
	// RuleBase64: an iv, payload or share is not canonical unpadded base64url.
	RuleBase64 Rule = "container-base64"
	// RuleLength: an iv, payload or share is too short or too long.
	RuleLength Rule = "container-length"
)

// Rules lists the rules of this package.
func Rules() []Rule { return []Rule{RuleForm, RuleKind, RuleBase64, RuleLength} }

func violation(rule Rule, detail string) error {
	return &Violation{Rule: rule, Detail: detail}
}

package golden

import (
	"testing"

	"golang.org/x/tools/txtar"
)

const archive = `# A case.
-- a.yaml --
x
y
-- lines of a --
2
`

func lines(t *testing.T, files map[string][]byte, question string) string {
	if question != "lines of a" {
		t.Errorf("asked %q", question)
	}
	n := 0
	for _, b := range files["a.yaml"] {
		if b == '\n' {
			n++
		}
	}
	return string(rune('0' + n))
}

func TestAnswersAreComparedWithTheirSections(t *testing.T) {
	if run(t, txtar.Parse([]byte(archive)), []string{".yaml"}, lines) {
		t.Error("a right answer changed the archive")
	}
}

func TestUpdateWritesTheAnswer(t *testing.T) {
	*update = true
	defer func() { *update = false }()
	a := txtar.Parse([]byte(archive))
	a.Files[1].Data = []byte("wrong\n")
	if !run(t, a, []string{".yaml"}, lines) {
		t.Error("a wrong answer did not change the archive")
	}
	if got := string(txtar.Format(a)); got != archive {
		t.Errorf("got %s", got)
	}
}

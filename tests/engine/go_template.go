// Executes Go templates as Ollama does: JSON cases on stdin, the texts as a JSON list on stdout.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	var cases []struct {
		Template string
		Messages []*message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	texts := []string{}
	for _, each := range cases {
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(each.Template))
		system := []string{}
		for _, message := range each.Messages {
			if message.Role == "system" {
				system = append(system, message.Content)
			}
		}
		var text strings.Builder
		values := map[string]any{"System": strings.Join(system, "\n\n"), "Messages": each.Messages}
		if err := parsed.Execute(&text, values); err != nil {
			panic(err)
		}
		texts = append(texts, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}

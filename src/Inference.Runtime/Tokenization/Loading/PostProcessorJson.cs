// The "post_processor" section of a tokenizer.json: ids around a prompt, and whether offsets leave spaces out.
namespace Inference.Runtime.Tokenization.Loading;

internal static class PostProcessorJson
{
    private const int TemplateIdsMax = 64;

    public static (PromptTemplate Template, OffsetTrimming Trimming) Read(JsonPlace? section, int vocabSize)
    {
        var (template, trimming) = (PromptTemplate.None, default(OffsetTrimming));
        if (section is not { } node)
            return (template, trimming);
        JsonPlace[] steps = node.Text("type") == "Sequence" ? [.. node.Required("processors").Items()] : [node];
        foreach (var step in steps)
        {
            switch (step.Text("type"))
            {
                case "ByteLevel" when template == PromptTemplate.None:
                    if (step.Flag("trim_offsets"))
                        trimming = new OffsetTrimming(Trims: true, step.Flag("add_prefix_space"));
                    break;
                case "TemplateProcessing" when template == PromptTemplate.None:
                    template = ReadTemplate(step, vocabSize);
                    break;
                case var type:
                    throw step.Fail($"the post-processor {JsonPlace.Show(type)} is not supported here", "Supported: ByteLevel, then TemplateProcessing.");
            }
        }
        return (template, trimming);
    }

    private static PromptTemplate ReadTemplate(JsonPlace step, int vocabSize)
    {
        List<int> before = [], after = [];
        var seen = false;
        foreach (var item in step.Required("single").Items())
        {
            if (item.Optional("Sequence") is { } sequence)
            {
                if (seen || sequence.Text("id") != "A")
                    throw item.Fail("the template of one text does not hold the text exactly once");
                seen = true;
                continue;
            }
            var name = item.Required("SpecialToken").Text("id");
            var ids = step.Required("special_tokens").Required(name).Required("ids").Items().Select(id => id.Index(vocabSize));
            (seen ? after : before).AddRange(ids.Take(TemplateIdsMax + 1));
            if (before.Count + after.Count > TemplateIdsMax)
                throw step.Fail($"the template has more than {TemplateIdsMax} tokens");
        }
        return seen ? new PromptTemplate(before, after) : throw step.Fail("the template of one text does not hold the text");
    }
}

using System.Text.Json;
using Inference.Runtime.Chat;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Chat;

public sealed class PythonJsonTests
{
    [Fact]
    public void Agrees_with_CPython_on_what_is_JSON_and_how_it_is_spelled()
    {
        int refused = 0;
        foreach (var item in EncodingFixtures.Load(Fixture.Path("encoding/python_json.json")))
        {
            string json = item.GetProperty("json").GetString()!;
            string? expected = item.TryGetProperty("normal", out var normal) ? normal.GetString() : null;
            string? actual = null;
            try
            {
                actual = PythonJson.Normalize(json);
            }
            catch (PythonJsonException)
            {
                refused++;
            }
            Assert.True(expected == actual, $"{Escaped(json)}: CPython gives {Escaped(expected)}, we give {Escaped(actual)}");
        }
        Assert.InRange(refused, 400, 1000);
    }

    [Fact]
    public void Is_idempotent_and_one_line()
    {
        foreach (var item in EncodingFixtures.Load(Fixture.Path("encoding/python_json.json")))
        {
            if (!item.TryGetProperty("normal", out var normal))
                continue;
            string text = normal.GetString()!;
            Assert.Equal(text, PythonJson.Normalize(text));
            Assert.DoesNotContain('\n', text);
        }
    }

    [Fact]
    public void Keeps_lone_surrogates_and_joins_pairs()
    {
        Assert.Equal("\"\ud800x\"", PythonJson.Normalize("\"\\ud800x\""));
        Assert.Equal("\"\ude42\ud83d\"", PythonJson.Normalize("\"\\ude42\\ud83d\""));
        Assert.Equal("\"🙂\"", PythonJson.Normalize("\"\\ud83d\\ude42\""));
    }

    [Fact]
    public void Keeps_every_digit_of_an_integer()
    {
        string digits = "7" + new string('3', 5000);
        Assert.Equal($"[{digits}, -{digits}]", PythonJson.Normalize($"[{digits},-{digits}]"));
    }

    [Theory]
    [InlineData(PythonJson.DepthMax, true)]
    [InlineData(PythonJson.DepthMax + 1, false)]
    [InlineData(1_000_000, false)]
    public void Reads_nesting_up_to_its_limit(int depth, bool reads)
    {
        string arrays = new string('[', depth) + new string(']', depth);
        string objects = string.Concat(Enumerable.Repeat("{\"a\":", depth)) + "1" + new string('}', depth);
        if (reads)
        {
            Assert.Equal(arrays, PythonJson.Normalize(arrays));
            Assert.Equal(objects.Replace(":", ": ", StringComparison.Ordinal), PythonJson.Normalize(objects));
        }
        else
        {
            Assert.Contains("deeper than 512", Assert.Throws<PythonJsonException>(() => PythonJson.Normalize(arrays)).Message);
            Assert.Throws<PythonJsonException>(() => PythonJson.Normalize(objects));
        }
    }

    [Fact]
    public void Says_where_the_fault_is()
    {
        var fault = Assert.Throws<PythonJsonException>(() => PythonJson.Normalize("{\"a\": 1, b: 2}"));
        Assert.Equal(9, fault.Position);
        Assert.Equal("expected a member name in double quotes at character 9", fault.Message);
    }

    [Fact]
    public void Quotes_a_text_that_System_Text_Json_reads_back()
    {
        string all = string.Concat(Enumerable.Range(0, 0x3000).Select(c => (char)c)) + "🙂你";
        Assert.Equal(all, JsonSerializer.Deserialize<string>(PythonJson.Quote(all)));
    }

    [Theory]
    [InlineData("[", "\"\\n\\u00e9\",", "0]")]
    [InlineData("[", "[{}],", "0]")]
    [InlineData("", "9", "")]
    [InlineData("0.", "9", "")]
    [InlineData("", "[", "")]
    [InlineData("\"", "\\n", "")]
    [InlineData("{", "\"k\":1,", "\"z\":0}")]
    public void Takes_time_linear_in_the_text(string start, string repeated, string end) => LinearTime.Check(100_000, size =>
    {
        string json = start + string.Concat(Enumerable.Repeat(repeated, size / repeated.Length)) + end;
        return () => NormalizeOrRefuse(json);
    });

    [Fact]
    public void Takes_time_linear_in_the_number_of_keys() => LinearTime.Check(100_000, size =>
    {
        string json = "{" + string.Join(",", Enumerable.Range(0, size / 10).Select(i => $"\"k{i}\":{i}")) + "}";
        return () => NormalizeOrRefuse(json);
    });

    private static void NormalizeOrRefuse(string json)
    {
        try
        {
            PythonJson.Normalize(json);
        }
        catch (PythonJsonException)
        {
        }
    }

    private static string Escaped(string? text) => text is null ? "an error" : JsonSerializer.Serialize(text);
}

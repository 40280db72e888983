// From a model folder to its tokenizer: which file to read, and reading it within limits.
//
// It knows the forms in which models are published and decides by the files' names and contents, never by guessing. All
// failures are a TokenizerException.
using Inference.Runtime.Tokenization.AddedTokens;
using Inference.Runtime.Tokenization.Loading;

namespace Inference.Runtime.Tokenization;

/// <summary>Loads the tokenizer of a model.</summary>
public static class TokenizerFactory
{
    /// <summary>Largest file that is read, in bytes. The largest published tokenizer.json has about 35 MB.</summary>
    public const long FileBytesMax = 256L << 20;

    private const string JsonName = "tokenizer.json";
    private const string ConfigName = "tokenizer_config.json";
    private const string KimiClass = "TikTokenTokenizer";

    private static readonly string[] FileNames = [JsonName, "tokenizer.model", "tiktoken.model"];

    /// <summary>
    /// Loads from a model folder: <c>tokenizer.json</c>; else a tiktoken <c>tokenizer.model</c> with <c>pattern</c> and
    /// <c>special_tokens</c> in config.json; else Kimi's <c>tiktoken.model</c> with tokenizer_config.json.
    /// </summary>
    /// <exception cref="TokenizerException">The folder has no tokenizer we can use, or a file of it is broken.</exception>
    public static ModelTokenizer Load(string folder)
    {
        ArgumentNullException.ThrowIfNull(folder);
        if (!Directory.Exists(folder))
            throw new TokenizerException(folder, "there is no such folder.", "Give the folder that holds config.json and tokenizer.json.");
        var configFile = Path.Combine(folder, ConfigName);
        var config = File.Exists(configFile) ? TokenizerConfigJson.Read(configFile, ReadFile(configFile)) : TokenizerConfigJson.Empty;
        var json = Path.Combine(folder, JsonName);
        if (File.Exists(json))
            return TokenizerJson.Read(json, ReadFile(json), config.Names);
        if (Path.Combine(folder, "tokenizer.model") is var model && File.Exists(model))
            return LoadRankFile(folder, model, config);
        if (Path.Combine(folder, "tiktoken.model") is var kimi && File.Exists(kimi) && config.TokenizerClass == KimiClass)
            return TiktokenFile.Read(kimi, ReadFile(kimi), SplitPatterns.Kimi, config.AddedTokens, config.Names);
        throw new TokenizerException(folder, "has no tokenizer.json and no tiktoken file we know.", "Put the model's tokenizer.json there.");
    }

    /// <summary>As <see cref="Load"/>; null when the folder brings no tokenizer, which a checkpoint for tests may well do.</summary>
    /// <exception cref="TokenizerException">There is one and it is broken.</exception>
    public static ModelTokenizer? Find(string folder) => FileNames.Any(name => File.Exists(Path.Combine(folder, name))) ? Load(folder) : null;

    /// <summary>Reads a tokenizer.json from memory; <paramref name="name"/> is what error messages call it.</summary>
    /// <exception cref="TokenizerException">It is broken or not supported.</exception>
    public static ModelTokenizer FromJson(ReadOnlyMemory<byte> json, string name = JsonName)
    {
        ArgumentNullException.ThrowIfNull(name);
        return TokenizerJson.Read(name, json, new TokenNames());
    }

    /// <summary>Loads a tiktoken rank file whose pattern and control tokens are known from elsewhere.</summary>
    /// <param name="file">The rank file.</param>
    /// <param name="pattern">The split pattern: one of those the families use.</param>
    /// <param name="specialTokens">Control tokens and their ids.</param>
    /// <exception cref="TokenizerException">It is broken or the pattern is not known.</exception>
    public static ModelTokenizer LoadTiktoken(string file, string pattern, IReadOnlyDictionary<string, int> specialTokens)
    {
        ArgumentNullException.ThrowIfNull(file);
        ArgumentNullException.ThrowIfNull(pattern);
        ArgumentNullException.ThrowIfNull(specialTokens);
        var where = new JsonPlace(file, "special tokens", default);
        List<AddedToken> tokens = [.. specialTokens.Select(token => TokenizerConfigJson.ControlToken(where, token.Key, token.Value))];
        return TiktokenFile.Read(file, ReadFile(file), pattern, tokens, new TokenNames());
    }

    private static ModelTokenizer LoadRankFile(string folder, string file, TokenizerConfigJson config)
    {
        var content = ReadFile(file);
        if (!TiktokenFile.Recognizes(content))
            throw new TokenizerException(file, "is a SentencePiece model.", "Put the model's tokenizer.json beside it; every published model has one.");
        var settingsFile = Path.Combine(folder, "config.json");
        var settings = File.Exists(settingsFile) ? TokenizerConfigJson.ReadRankFileSettings(settingsFile, ReadFile(settingsFile)) : null;
        if (settings is not { } found)
            throw new TokenizerException(file, "is a rank file, but config.json gives no \"pattern\" and \"special_tokens\".", "Put the model's tokenizer.json beside it.");
        return TiktokenFile.Read(file, content, found.Pattern, found.Special, config.Names);
    }

    private static byte[] ReadFile(string file)
    {
        try
        {
            var length = new FileInfo(file).Length;
            if (length > FileBytesMax)
                throw new TokenizerException(file, $"has {length} bytes, more than {FileBytesMax}.", "Check that it is the right file.");
            return File.ReadAllBytes(file);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new TokenizerException(file, $"cannot be read: {e.Message}", "Check the path and its permissions.", e);
        }
    }
}

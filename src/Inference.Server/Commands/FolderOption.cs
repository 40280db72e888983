using System.CommandLine;
using Inference.Runtime.Models;
using Inference.Server.Hosting;
using Inference.Server.Options;

namespace Inference.Server.Commands;

/// <summary><c>--model</c> for verbs that read a model's folder and do not load its weights.</summary>
internal sealed class FolderOption
{
    private readonly SettingOptions _settings;

    public FolderOption(Command command) => _settings = new SettingOptions(command, [Settings.Model]);

    /// <exception cref="OptionsException">There is no such folder.</exception>
    /// <exception cref="Runtime.Weights.ModelLoadException">It is no model that this build serves.</exception>
    public ModelFolder Open(ParseResult parsed) => ModelFolder.Open(_settings.Reader(parsed).ReadModel().FolderOrEmbedded);
}
